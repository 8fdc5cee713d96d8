"""Samplers: what a trained model predicts, step by step through the flow-matching ODE.

A sampler is a frozen dataclass of plain settings around a family's abstract module, and is called as
`sampler(params, conditions, keys, **options) -> Prediction`, with one random key per sample.
"""

from typing import NamedTuple

import jax
import numpy as np


class Prediction(NamedTuple):
    """What a sampler gives for a whole window. None stands for what the family, or the question, leaves out."""

    actions: jax.Array | None  # [B, N, action_dim], normalised
    latents: jax.Array | None = None  # [B, F, h, w, C]; frame 0 is the given one
    model_calls: jax.Array | None = None  # int32 [blocks]: solver steps that ran the model, where some may not


class Schedule(NamedTuple):
    """How one part of a block, its video or its actions, is denoised."""

    sigmas: np.ndarray  # float64 [steps + 1]: the noise level before every solver step, and after the last
    runs: tuple[bool, ...] | None  # whether the model runs in each step or its last prediction is reused; None where
    # that is decided on the way


def sample_noise(keys: jax.Array, block, shapes: tuple[tuple[int, ...], ...]) -> tuple[jax.Array, ...]:
    """Initial noise of a block, float32 [B, *shape] for each shape: a function of (sample's key, block, place in
    `shapes`)."""
    def of_sample(key):
        key = jax.random.fold_in(key, block)
        return tuple(jax.random.normal(jax.random.fold_in(key, i), shape) for i, shape in enumerate(shapes))

    return jax.vmap(of_sample)(keys)
