"""Decoding of frames, from videos and from encoded pictures."""
