"""Model families: each is embedders and heads, a visibility table, a noise schedule and a layout.

`Family` is what the training code sees of one: functions of a flat dict of parameters.
"""

import dataclasses

import jax
from flax import nnx

from world_model import flops, functional
from world_model.families.axes import axes_of
from world_model.families.dreamzero import DreamZero, DreamZeroSpec


@dataclasses.dataclass(frozen=True)
class Family:
    """A module class and its sizes."""

    spec: DreamZeroSpec
    module: DreamZero  # abstract: structure and shapes, no arrays

    def init_params(self, key: jax.Array) -> dict[str, jax.Array]:
        """Fresh float32 parameters by name."""
        return functional.parameters(type(self.module)(self.spec, rngs=nnx.Rngs(params=key)))

    def axes(self) -> dict[str, tuple]:
        """Logical axes by name."""
        return axes_of(functional.parameters(self.module))

    @property
    def flops_per_sample(self) -> float:
        """Model FLOP of one training sample; convention in world_model/flops.py."""
        return sum(flops.training_flops(self.spec).values())


FAMILIES = {"dreamzero": (DreamZero, DreamZeroSpec)}


def make_family(name: str, **sizes) -> Family:
    """The family of that name at those sizes. Raises ValueError on an unknown name or sizes that do not fit."""
    if name not in FAMILIES:
        raise ValueError(f"model.family = {name!r}: there are {sorted(FAMILIES)}")
    module, spec_class = FAMILIES[name]
    spec = spec_class(**sizes)
    return Family(spec, functional.abstract(module, spec))
