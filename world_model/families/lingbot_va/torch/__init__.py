"""LingBot-VA in PyTorch (extra: torch)."""
