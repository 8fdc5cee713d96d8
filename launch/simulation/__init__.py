"""Simulation: policies that act in simulators, and what is recorded of them."""
