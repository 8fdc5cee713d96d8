"""The latent cache: windows as the frozen encoders see them, stored."""
