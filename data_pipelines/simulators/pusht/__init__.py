"""A scripted pusher drives the gym-pusht simulator; what it does is recorded as robot episodes and as bare clips."""
