"""Grain pipelines: sources -> episodes -> windows -> mixtures -> batches."""
