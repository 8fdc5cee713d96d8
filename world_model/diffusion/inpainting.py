"""Inpainting: what need not be predicted is held to its value while the rest is denoised.

A known value moves from its noise to itself at a constant velocity, so that it has at every step the noise level of
what is predicted, as in training; any solver is exact on a straight line.
"""

from typing import Any, NamedTuple


class Inpainting(NamedTuple):
    """Known values of a window or of a block (JAX or PyTorch arrays); where a mask is True the value is given."""

    actions: Any  # [B, N, action_dim], normalised
    action_mask: Any  # bool, broadcasts to actions
    latents: Any = None  # [B, F, h, w, C]
    latent_mask: Any = None  # bool, broadcasts to latents


def inpainting_velocity(noise, value, travel: float):
    """The constant velocity that leads from noise to a known value while sigma changes by `travel` (negative)."""
    return (value - noise) / travel
