"""The policy server: wire form, protocols, sessions, batching on the device, connections."""
