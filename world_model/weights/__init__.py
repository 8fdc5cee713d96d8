"""Weights in and out: name tables as data, readers, writers and the PyTorch runtime."""
