"""A model family: one object that says all that config, training, planning, export and serving need to know of it."""

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from world_model import functional
from world_model.analysis import flops
from world_model.families.base.batched_policy import BatchedPolicy
from world_model.families.base.export import ExportFormat
from world_model.families.base.inputs import Inputs
from world_model.families.base.spec import Spec
from world_model.parallel.axes import axes_of
from world_model.weights.formats import PublishedFormat


class MissingPart(ValueError):
    """A family lacks a part that a command needs."""


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family is made of. Parts given as "module:attribute" are imported when they are asked for."""

    name: str
    spec: type[Spec]  # its sizes
    module: type[nnx.Module]  # its network; has `param_axes`, sharding rules of what stands outside its stacks, and
    # may have `float32_params`, a regular expression of parameters that train.compute_dtype leaves alone
    config: Mapping[str, Mapping[str, Any]]  # its own keys and sizes, by section of the config, for configs/base.py
    inputs: Callable[..., Inputs]  # inputs(spec, encoders by part, noise settings)
    loss: str | Callable[..., Any]  # a Loss, see base/loss.py; as "module:attribute", no server imports it
    sampler: type  # see base/sampler.py; constructed with the module, the config's `evaluate` keys and noise shifts
    policy: type[BatchedPolicy]
    forward_flops: Callable[[Any], flops.Parts]
    imagines_video: bool = True  # False: no codec, no latents in answers, no gap between imagined and seen
    render_mask: Callable[[nnx.Module], tuple[np.ndarray, dict]] | None = None  # picture of who sees whom, its legend
    exports: Mapping[str, ExportFormat] = dataclasses.field(default_factory=dict)  # the first is the family's own
    imports: Mapping[str, PublishedFormat] = dataclasses.field(default_factory=dict)
    torch_policy: str = ""  # serves exports in PyTorch
    torch_step: str = ""  # writes a denoising step as a file that PyTorch alone runs
    original: str = ""  # runs exports in a checkout of the original project: see launch/exporting/original.py
    golden: str = ""  # reads files of reference numbers

    def part(self, name: str, command: str):
        """The part of that name, imported. Raises MissingPart where the family has none, naming who wants it."""
        place = getattr(self, name)
        if not place:
            raise MissingPart(f"family {self.name!r} has no {name.replace('_', ' ')}, which {command} needs")
        if not isinstance(place, str):
            return place
        module, _, attribute = place.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def make_model(self, **sizes) -> "Model":
        """The family at those sizes. Raises ValueError on a size that it does not have, or sizes that do not fit."""
        known = {field.name for field in dataclasses.fields(self.spec)}
        if unknown := sorted(sizes.keys() - known):
            raise ValueError(f"model.{unknown[0]} means nothing to family {self.name!r}; it has {sorted(known)}")
        return Model(self, self.spec(**sizes))


@dataclasses.dataclass(frozen=True)
class Model:
    """A family at its sizes, without weights."""

    family: Family
    spec: Any

    @functools.cached_property
    def module(self) -> nnx.Module:
        """The abstract network: structure and shapes, no arrays."""
        return functional.abstract(self.family.module, self.spec)

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract parameters by name."""
        return functional.parameters(self.module)

    def init_params(self, key: jax.Array) -> dict[str, jax.Array]:
        """Fresh float32 parameters by name."""
        return functional.parameters(self.family.module(self.spec, rngs=nnx.Rngs(params=key)))

    def axes(self) -> dict[str, tuple]:
        """Logical axes by name. Raises ValueError on a large parameter that no rule names."""
        return axes_of(self.shapes, self.family.module.param_axes)

    def cast(self, params: dict[str, jax.Array], dtype: str) -> dict[str, jax.Array]:
        """Parameters as the network computes with them: in that dtype, but for those whose names the module's
        `float32_params` matches, where it has one."""
        kept = getattr(self.family.module, "float32_params", None)
        return {name: p if kept and re.search(kept, name) else p.astype(dtype) for name, p in params.items()}

    def sampler(self, **settings):
        """A compiled sampler with those settings (evaluate.* of the config, and the noise's shifts)."""
        return self.family.sampler(self.module, **settings)

    @property
    def training_flops(self) -> dict[str, float]:
        """Model FLOP of one training sample by part; the convention is in world_model/analysis/flops.py."""
        return flops.training_flops(self.family.forward_flops(self.spec))

    @property
    def flops_per_sample(self) -> float:
        """Model FLOP of one training sample."""
        return sum(self.training_flops.values())
