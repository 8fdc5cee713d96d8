"""Many hosts as one run: joining, hanging steps, where the time went."""
