"""Readers of robot episodes and video clips; each yields `data_pipelines.episode.Episode`."""
