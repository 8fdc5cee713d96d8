"""Planning: what a run takes of a slice, and what to change when memory is not enough."""
