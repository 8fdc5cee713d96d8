"""Building blocks of networks: transformer layers and stacks of them, embedders, norms, rotary positions, adapters."""
