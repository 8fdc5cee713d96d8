"""Counting work: FLOP of a model, contents of a compiled program, distances between images."""
