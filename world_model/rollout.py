"""What every family's rollout is given and gives back.

A rollout is called with parameters, conditions, one key per sample and, if there is one, a history:

    prediction = rollout(params, conditions, keys, history=None)

`history` decides what enters the cache after a block: real latents (policy: each block's actions are predicted
from what really happened) or, without it, the model's own (imagination: everything from the first frame).
`known`, where a family takes it, decides what is predicted: actions that are given make it forward dynamics, video that
is given inverse dynamics, and actions already on their way to the robot are given in part.
"""

from typing import NamedTuple

import jax


class Conditions(NamedTuple):
    """What a rollout starts from; shapes as in the family's Inputs and Example."""

    first_latents: jax.Array  # [B, 1, h, w, C]
    text: jax.Array
    state: jax.Array  # [B, S, state_dim], one block's states at a time are looked at
    condition: jax.Array | None = None  # [B, F, h, w, 4 + C]
    image: jax.Array | None = None
    unconditional_text: jax.Array | None = None  # [B, Lt, text_dim], for guidance other than 1
    actions: jax.Array | None = None  # as executed, for families whose history holds them
    action_mask: jax.Array | None = None  # bool, True on real values of `actions`


class Known(NamedTuple):
    """What need not be predicted, of a window or of a block. Where a mask is True the value is given."""

    actions: jax.Array  # [B, N, action_dim], normalised
    action_mask: jax.Array  # bool, broadcasts to actions
    latents: jax.Array  # [B, F, h, w, C]
    latent_mask: jax.Array  # bool, broadcasts to latents


class Prediction(NamedTuple):
    """A whole window as rolled out."""

    latents: jax.Array  # [B, F, h, w, C]; frame 0 is the given one
    actions: jax.Array  # [B, N, action_dim], normalised
    model_calls: jax.Array | None = None  # int32 [blocks]: solver steps that ran the model, where some may not
