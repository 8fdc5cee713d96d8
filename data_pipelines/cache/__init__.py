"""Windows after the frozen encoders, stored."""
