"""LingBot-VA."""
