"""Models, noise, samplers, sharding, state, checkpoints and weight conversion. Imports neither data nor launch."""
