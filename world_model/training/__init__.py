"""Training: the train step, and what a run keeps (state, optimizer, checkpoints, metrics)."""
