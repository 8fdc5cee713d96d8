"""Robots: what they see, measure and do, and how that becomes numbers in shared slots."""
