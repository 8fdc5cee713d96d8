"""Parallel training: where arrays live on a mesh, and what the backward pass keeps."""
