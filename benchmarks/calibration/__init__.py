"""Calibration of plans: programs whose step time somebody published, and what the planner says of them."""
