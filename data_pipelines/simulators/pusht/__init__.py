"""PushT: a scripted controller drives the gym-pusht simulator and is recorded as robot episodes and as bare clips."""
