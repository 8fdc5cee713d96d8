"""DreamZero."""
