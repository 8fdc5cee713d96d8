"""Flow matching: noise levels, solvers, skipped steps."""
