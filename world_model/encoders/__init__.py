"""Frozen encoders behind two small interfaces: video codec and text encoder."""
