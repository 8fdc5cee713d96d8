"""What every family has: sizes, inputs, loss, sampler, policy, golden file."""
