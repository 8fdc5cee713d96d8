"""Scores, figures and pages."""
