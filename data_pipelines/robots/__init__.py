"""Robots: what they see, measure and do, shared slots, normalisation, views."""
