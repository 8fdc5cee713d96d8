"""LingBot-VLA in PyTorch (extra: torch)."""
