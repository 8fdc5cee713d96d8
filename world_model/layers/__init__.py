"""Building blocks of networks: transformer blocks and stacks of them, embedders, norms, rotary positions, adapters."""
