"""Normalisation statistics of states and actions."""
