"""Exports: what a family writes of a trained model, and how what was written is compared with what was meant."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.weights import conversion
from world_model.weights.comparison import Difference, max_difference
from world_model.weights.formats import PublishedFormat

if TYPE_CHECKING:
    from world_model.families.base.family import Model

RUNTIME, READ_BACK = "PyTorch runtime", "parameters read back"  # what an export is compared with


class Trained(NamedTuple):
    """A model to write, with what goes with its weights."""

    model: "Model"
    params: Mapping[str, jax.Array]  # float32
    settings: dict  # settings of the sampler that the weights are meant for
    statistics: dict  # by dataset
    robots: dict[str, Any]  # embodiments of the datasets that have actions, by dataset
    trainable: str  # regular expression of the parameters that were trained
    step: int = 0  # training step
    crop: float = 1.0  # share of each view that is kept
    encoders: Mapping[str, Any] = MappingProxyType({})  # the frozen encoders' names and files, as config.encoders
    unconditional: str = ""  # what the unconditional branch of guidance reads
    by_tensor: bool = False  # compare what is read back, one by one, and no two models

    @property
    def sampler(self):
        """The sampler that the weights are meant for."""
        return self.model.sampler(**self.settings)


class Comparison(NamedTuple):
    """Differences between what was written and what was trained."""

    parity: dict[str, Difference]  # differences between runtimes of the same weights, held to the tolerance
    cast: Mapping[str, Difference] = MappingProxyType({})  # what the file's dtype changes
    bfloat16: Mapping[str, Difference] = MappingProxyType({})  # what computing in it changes, where something computes
    # Of the program whose layout it is, in sentences:
    unloadable: tuple[str, ...] = ()  # why it cannot load the whole of it
    deviations: tuple[str, ...] = ()  # what it does otherwise than training did


class OriginalRun(NamedTuple):
    """What the original project computes and answers with an export, beside ours."""

    entries: Mapping[str, tuple[np.ndarray, np.ndarray]]  # name -> (ours, the original's)
    unmatched: Mapping[str, list[str]] = MappingProxyType({})  # tensors that it missed, or had no place for
    deviations: tuple[str, ...] = ()  # see Comparison


@dataclasses.dataclass(frozen=True)
class ExportFormat:
    """How weights are written, in a dtype and in files of at most `shard_bytes`."""

    write_and_compare: Callable[[Path, Trained, np.dtype, int], Comparison]  # directory, trained, dtype, shard_bytes
    compared_with: str  # what the differences are differences from


def rounded(params: Mapping[str, jax.Array], dtype: np.dtype) -> Mapping[str, Any]:
    """float32 parameters as a file of that dtype holds them, each made when it is asked for."""
    return params if dtype == np.float32 else _Rounded(params, dtype)


class _Rounded(Mapping):
    def __init__(self, params: Mapping[str, jax.Array], dtype: np.dtype):
        self._params, self._dtype = params, dtype

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._params[name]).astype(self._dtype).astype(np.float32)

    def __iter__(self):
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)


def arrays(params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The parameters as device arrays, which a compiled function takes."""
    return {name: jnp.asarray(x) for name, x in params.items()}


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 [1, *shape], of fixed inputs that are compared."""
    return rng.normal(size=(1, *shape)).astype(np.float32)


def check(directory: Path, trained: Trained, dtype: np.dtype, layout: PublishedFormat, jax_outputs: Callable,
          torch_outputs: Callable) -> Comparison:
    """Compares a written directory of that layout with the trained model: outputs of the whole network in JAX and in
    PyTorch, or each parameter by itself (`Trained.by_tensor`).

    jax_outputs(sampler, params) and torch_outputs(sampler, directory, dtype to compute in) give arrays by entry; those
    in bfloat16 may be some of the entries.
    """
    if trained.by_tensor:
        return read_back(directory, trained, dtype, layout)
    sampler = trained.sampler
    parity, cast, expected = compare_cast(
        lambda params: jax_outputs(sampler, params), trained, dtype, torch_outputs(sampler, directory, "float32"))
    low = torch_outputs(sampler, directory, "bfloat16")
    return Comparison(parity, cast, compare({entry: expected[entry] for entry in low}, low))


def read_back(directory: Path, trained: Trained, dtype: np.dtype, layout: PublishedFormat) -> Comparison:
    """Compares a directory of that layout with the trained model, one parameter at a time."""
    found = conversion.read(layout.open(directory), trained.params, trained.model.spec)
    return Comparison(*compare_cast(lambda params: params, trained, dtype, found)[:2])


def compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Difference]:
    """Differences entry by entry."""
    return {entry: max_difference(entry, x, found[entry]) for entry, x in expected.items()}


def compare_cast(outputs: Callable[[Mapping], Mapping], trained: Trained, dtype: np.dtype, found: Mapping
                 ) -> tuple[dict[str, Difference], dict[str, Difference], Mapping]:
    """(parity, cast, expected): differences between `found` and the `outputs` of the weights in the file's dtype, those
    that the cast itself makes, and the outputs."""
    params = rounded(trained.params, dtype)
    expected = outputs(params)
    cast = {} if params is trained.params else compare(outputs(trained.params), expected)
    return compare(expected, found), cast, expected
