"""Exports as something to act with."""
