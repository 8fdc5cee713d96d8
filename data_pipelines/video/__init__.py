"""Frames of videos and pictures."""
