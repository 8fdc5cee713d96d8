"""What every family's rollout is given and gives back.

A rollout is called with parameters, conditions, one key per sample and, if there is one, a history:

    prediction = rollout(params, conditions, keys, history=None)

`history` decides what enters the cache after a block: real latents (policy: each block's actions are predicted
from what really happened) or, without it, the model's own (imagination: everything from the first frame).
`known`, where a family takes it, decides what is predicted: actions that are given make it forward dynamics, video that
is given inverse dynamics, and actions already on their way to the robot are given in part. Video alone is asked of
DreamZero by conditions without a state, of LingBot-VA, which has none, by `video_alone=True`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Conditions(NamedTuple):
    """What a rollout starts from; shapes as in the family's Inputs and Example."""

    first_latents: jax.Array  # [B, 1, h, w, C]
    text: jax.Array
    state: jax.Array | None  # [B, S, state_dim], one block's states at a time are looked at
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
    actions: jax.Array | None  # [B, N, action_dim], normalised; None where video alone was asked for
    model_calls: jax.Array | None = None  # int32 [blocks]: solver steps that ran the model, where some may not


class Schedule(NamedTuple):
    """How one part of a block, its video or its actions, is denoised."""

    sigmas: np.ndarray  # float64 [steps + 1]: the noise level before every solver step, and after the last
    runs: tuple[bool, ...] | None  # of every step: whether the model runs or its last prediction is reused; None:
    # decided on the way


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guided:
    """Classifier-free guidance, v = u + scale (c - u), of a family's rollout: both branches fill their own cache."""

    guidance: float = 1.0  # scale of the video
    action_guidance: float = 1.0  # scale of the actions; where both are 1 no unconditional branch runs
    branch_devices: int = 1  # 2: the branches run beside each other, each on a device of its own

    def __post_init__(self):
        found = len(jax.devices())
        if not 1 <= self.branch_devices <= min(2, found):
            raise ValueError(f"branch_devices = {self.branch_devices}: guidance has 2 branches, for 1 or 2 devices; "
                             f"this process sees {found}")
        if self.branch_devices == 2 and not self.guided:
            raise ValueError("branch_devices = 2, but without guidance there is one branch")

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch runs."""
        return (self.guidance, self.action_guidance) != (1.0, 1.0)

    def branches(self, conditional, unconditional):
        """One batch of both, conditional first; the conditional one alone where there is no guidance."""
        if not self.guided:
            return conditional
        return self._spread(jnp.concatenate([conditional, unconditional]), PartitionSpec("branch"))

    def both(self, x):
        """x once per branch; None stays None."""
        return None if x is None else self.branches(x, x)

    def guide(self, velocity, scale: float):
        """One velocity of both branches'."""
        if not self.guided:
            return velocity
        conditional, unconditional = jnp.split(velocity, 2)
        return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)

    def placed(self, params: dict) -> dict:
        """The parameters where the branches are."""
        return jax.tree.map(lambda p: self._spread(p, PartitionSpec()), params)

    def _spread(self, x, spec: PartitionSpec):
        if self.branch_devices == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(Mesh(jax.devices()[:2], ("branch",)), spec))
