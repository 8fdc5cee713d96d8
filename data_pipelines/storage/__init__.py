"""Files, local and remote, and what a process keeps of them in memory."""
