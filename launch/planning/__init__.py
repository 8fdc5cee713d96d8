"""What a run takes of a slice: published figures of chips, estimates, memory."""
