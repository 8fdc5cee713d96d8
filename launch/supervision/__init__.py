"""Supervision of a run: joining its hosts, stopping them, finding steps that hang, accounting for the time."""
