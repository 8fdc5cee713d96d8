"""Reporting: scores, figures and pages."""
