"""DreamZero in PyTorch (extra: torch)."""
