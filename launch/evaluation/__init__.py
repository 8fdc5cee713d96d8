"""Evaluation on held-out episodes: what is asked of a model, after a run and inside one."""
