"""Simulated tasks and recordings of them."""
