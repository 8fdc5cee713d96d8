"""Classifier-free guidance (arXiv 2207.12598), v = u + scale (c - u): both branches are one batch, or two devices."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def combine(conditional, unconditional, scale: float):
    """The guided velocity of both branches' velocities (JAX or PyTorch)."""
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guided:
    """What a sampler with guidance inherits; each branch fills its own cache."""

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
        """One velocity from both branches' batch."""
        if not self.guided:
            return velocity
        conditional, unconditional = jnp.split(velocity, 2)
        return combine(conditional, unconditional, scale)

    def placed(self, params: dict) -> dict:
        """The parameters where the branches are."""
        return jax.tree.map(lambda p: self._spread(p, PartitionSpec()), params)

    def _spread(self, x, spec: PartitionSpec):
        if self.branch_devices == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(Mesh(jax.devices()[:2], ("branch",)), spec))
