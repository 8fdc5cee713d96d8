"""Model families: each is embedders and heads, a visibility table, a noise schedule and a layout.

`Family` is what training and evaluation see of one: functions of a flat dict of parameters. Adding a family is adding
its `Parts`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from world_model import functional
from world_model.analysis import flops
from world_model.families.base.loss import Objective
from world_model.families.base.policy import SlotPolicy
from world_model.families.dreamzero import flops as dreamzero_flops
from world_model.families.dreamzero import formats as dreamzero_formats
from world_model.families.dreamzero import loss as dreamzero_objective
from world_model.families.dreamzero import model as dreamzero
from world_model.families.dreamzero import policy as dreamzero_policy
from world_model.families.dreamzero import sampler as dreamzero_rollout
from world_model.families.lingbot_va import flops as lingbot_va_flops
from world_model.families.lingbot_va import formats as lingbot_va_formats
from world_model.families.lingbot_va import layout as lingbot_va_layout
from world_model.families.lingbot_va import loss as lingbot_va_objective
from world_model.families.lingbot_va import mixture as lingbot_va_mot
from world_model.families.lingbot_va import model as lingbot_va
from world_model.families.lingbot_va import policy as lingbot_va_policy
from world_model.families.lingbot_va import sampler as lingbot_va_rollout
from world_model.parallel.axes import axes_of
from world_model.weights.formats import PublishedFormat


class Parts(NamedTuple):
    """What a family is made of."""

    module: type[nnx.Module]
    spec: type  # its sizes: a dataclass
    objective: type[Objective]
    rollout: type  # called as world_model/families/base/sampler.py says
    policy: type[SlotPolicy]
    forward_flops: Callable[[Any], flops.Parts]


FAMILIES = {
    "dreamzero": Parts(dreamzero.DreamZero, dreamzero.DreamZeroSpec, dreamzero_objective.DreamZeroObjective,
                       dreamzero_rollout.DreamZeroRollout, dreamzero_policy.DreamZeroPolicy,
                       dreamzero_flops.forward_flops),
    "lingbot_va": Parts(lingbot_va.LingBotVA, lingbot_va_layout.LingBotVASpec, lingbot_va_objective.LingBotVAObjective,
                        lingbot_va_rollout.LingBotVARollout, lingbot_va_policy.LingBotVAPolicy,
                        lingbot_va_flops.forward_flops),
    "lingbot_va_mot": Parts(lingbot_va_mot.LingBotVAMoT, lingbot_va_mot.LingBotVAMoTSpec,
                            lingbot_va_objective.LingBotVAObjective, lingbot_va_rollout.LingBotVARollout,
                            lingbot_va_policy.LingBotVAPolicy, lingbot_va_flops.mot_forward_flops),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A family at its sizes."""

    parts: Parts
    spec: Any

    @functools.cached_property
    def module(self) -> nnx.Module:
        """Abstract: structure and shapes, no arrays."""
        return functional.abstract(self.parts.module, self.spec)

    def init_params(self, key: jax.Array) -> dict[str, jax.Array]:
        """Fresh float32 parameters by name."""
        return functional.parameters(self.parts.module(self.spec, rngs=nnx.Rngs(params=key)))

    def axes(self) -> dict[str, tuple]:
        """Logical axes by name."""
        return axes_of(functional.parameters(self.module))

    def objective(self, *encoders, **settings) -> Objective:
        """What training minimises; encoders and settings as in the family's objective."""
        return self.parts.objective(self.module, *encoders, **settings)

    def rollout(self, **settings):
        """A compiled rollout; settings as in the family's own. Raises ValueError on one that it does not have."""
        known = {field.name for field in dataclasses.fields(self.parts.rollout)} - {"model"}
        if unknown := sorted(settings.keys() - known):
            raise ValueError(f"{self.parts.rollout.__name__} has no setting {unknown[0]!r}; it has {sorted(known)}")
        return self.parts.rollout(self.module, **settings)

    def policy(self, objective: Objective, params: dict, slots: int, channels, batch_sizes, **settings) -> SlotPolicy:
        """A policy over slots; settings as in `rollout`, the rest as in SlotPolicy."""
        return self.parts.policy(self.rollout(**settings), objective, params, slots, channels, batch_sizes)

    @property
    def training_flops(self) -> dict[str, float]:
        """Model FLOP of one training sample by part; convention in world_model/analysis/flops.py."""
        return flops.training_flops(self.parts.forward_flops(self.spec))

    @property
    def flops_per_sample(self) -> float:
        """All of them."""
        return sum(self.training_flops.values())


def make_family(name: str, **sizes) -> Family:
    """The family of that name at those sizes. Raises ValueError on an unknown name or size, or sizes that do not
    fit."""
    if name not in FAMILIES:
        raise ValueError(f"model.family = {name!r}: there are {sorted(FAMILIES)}")
    parts = FAMILIES[name]
    known = {field.name for field in dataclasses.fields(parts.spec)}
    if unknown := sorted(sizes.keys() - known):
        raise ValueError(f"model.{unknown[0]} means nothing to family {name!r}; it has {sorted(known)}")
    return Family(parts, parts.spec(**sizes))


def published_formats() -> dict[str, PublishedFormat]:
    """The layouts that launch.import_weights reads, by the name of --format."""
    return dreamzero_formats.IMPORTS | lingbot_va_formats.IMPORTS
