"""Miniatures of public data sets: the same columns, shapes, types and conventions, and nothing worth learning."""
