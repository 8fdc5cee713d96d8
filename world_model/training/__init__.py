"""The train step and all that a run keeps: state, optimizer, checkpoints, metrics."""
