"""A file of reference numbers: inputs, weights and expected results."""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx

from world_model import functional, kinds
from world_model.weights import names


def read_config(arrays: Mapping[str, np.ndarray]) -> dict:
    """The constructor's values in a file of reference numbers; {} where it has none. Raises ValueError."""
    return kinds.parse(str(arrays.get("cfg_json", "{}")), kinds.fields({"model": kinds.MAP}), "cfg_json")


class GoldenFile:
    """Sizes, weights under the reference's names, inputs and expected results. A family says how to read them."""

    MARK: str  # a constructor value that only this family's reference has, by which its files are recognised
    INPUTS: re.Pattern  # entries that are no expected results: weights, inputs, sizes
    RELATIVE: re.Pattern  # entries compared relative to the expected value
    SECTIONS: Mapping[str, Callable]  # first part of a name -> (golden, adapter) -> iterator of (name, array)

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.config = read_config(arrays)
        self.weights = {key[2:]: x for key, x in arrays.items() if key.startswith("w/")}
        self.inputs = {key: x for key, x in arrays.items() if self.INPUTS.match(key)}
        self.expected = {key: x for key, x in arrays.items() if not self.INPUTS.match(key)}

    def adapter(self, runtime: str, weights: Mapping[str, np.ndarray] | None = None):
        """The model of this file in that runtime, with its weights or others under the same names."""
        raise NotImplementedError

    def video(self, name: str) -> np.ndarray:
        """An input [B, C, F, h, w] as [B, F, h, w, C]."""
        return np.moveaxis(self.inputs[f"in/{name}"], 1, -1)

    def actions(self, name: str) -> np.ndarray:
        """An input [B, A, F, n, 1] as [B, F n, A]."""
        x = np.moveaxis(self.inputs[f"in/{name}"][..., 0], 1, -1)
        return x.reshape(len(x), -1, x.shape[-1])


class ReferenceAdapter:
    """A family's network in JAX, as it is compared: `model`, abstract, of `spec`, and `params`."""

    module: ClassVar[type[nnx.Module]]

    def __init__(self, spec: Any, params: Mapping[str, jax.Array]):
        self.spec, self.params = spec, dict(params)
        self.model = functional.abstract(self.module, spec)

    @classmethod
    def table(cls, spec: Any) -> names.NameTable:
        """The reference's names."""
        raise NotImplementedError

    @classmethod
    def from_reference(cls, spec: Any, tensors: Mapping[str, np.ndarray]) -> Self:
        """Makes the adapter from weights under the reference's names. Raises ValueError where they do not fit."""
        shapes = functional.parameters(functional.abstract(cls.module, spec))
        return cls(spec, names.from_published(tensors, shapes, spec.head_dim, cls.table(spec)))


def formula(x: np.ndarray, sigma: float) -> np.ndarray:
    """The velocity by which goldens test solvers."""
    s = np.float32(sigma)
    return np.float32(0.7) * x + np.float32(0.3) * np.sin(3 * x + 2 * s) - np.float32(0.1) * s


def channels_first(video: np.ndarray) -> np.ndarray:
    """[B, F, h, w, C] -> [B, C, F, h, w]."""
    return np.moveaxis(np.asarray(video), -1, 1)


def grouped(actions: np.ndarray, n: int) -> np.ndarray:
    """[B, F n, A] -> [B, A, F, n, 1]."""
    actions = np.asarray(actions)
    return np.moveaxis(actions.reshape(len(actions), -1, n, actions.shape[-1]), -1, 1)[..., None]
