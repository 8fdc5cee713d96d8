"""Files, local and remote, and what a process remembers of them."""
