"""Attention over the visibility table: one `attend` signature, interchangeable kernels."""
