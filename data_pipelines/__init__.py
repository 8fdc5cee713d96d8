"""Grain pipelines from sources over episodes, windows and mixtures to batches."""
