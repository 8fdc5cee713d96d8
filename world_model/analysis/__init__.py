"""What work costs and results are worth: FLOP of a model, a compiled program's contents, chips, image distances."""
