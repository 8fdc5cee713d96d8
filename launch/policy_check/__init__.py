"""Properties that any PyTorch policy should have, checked from outside through a small adapter; imports nothing of ours
but the page's HTML, so that it runs in the policy's own environment."""
