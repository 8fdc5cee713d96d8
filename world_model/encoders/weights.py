"""Frozen encoders' weights from a local file or folder: names tell the format and, in a larger checkpoint, where the
encoder is; every tensor of it is accounted for."""

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from flax import nnx

from world_model import functional
from world_model.encoders.names import TensorTable, published_shapes
from world_model.weights.safetensors_io import Weights, WeightsError
from world_model.weights.tensor_files import open_tensors, read_tensor

STEMS = ("diffusion_pytorch_model", "model")  # stems of the files in a folder


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """Where an encoder's weights are."""

    path: str = ""  # a .safetensors file, a folder of them with an index, or (allow_pickle) a .pth or .pt file
    allow_pickle: bool = False  # read .pth through torch's weights_only unpickler


NO_FILE = WeightsFile()


class FromFile:
    """What encoders share whose arrays are in a file: those of `network` at the sizes of `spec`, of `dtype`."""

    network: ClassVar[Callable[..., nnx.Module]]
    spec: Any
    weights: WeightsFile
    dtype: str

    @functools.cached_property
    def module(self) -> nnx.Module:
        """The abstract network."""
        return functional.abstract(self.network, self.spec)

    @property
    def tables(self) -> dict[str, TensorTable]:
        """The names that the arrays may have in a file, by format."""
        raise NotImplementedError

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the arrays."""
        return {name: jax.ShapeDtypeStruct(shape, self.dtype)
                for name, shape in functional.shapes(self.network, self.spec).items()}

    def init(self, clips: Callable[[], np.ndarray] | None = None) -> dict:
        """Makes what stands for the weights in a checkpoint. Raises WeightsError without any file."""
        return fingerprint(self.weights)

    def load(self, kept: dict) -> dict:
        """Reads the weights. Raises WeightsError where they are another encoder's, or others than `init` saw."""
        check(self.weights, kept)
        return load(self.weights, self.tables, self.shapes())


class WithoutArrays:
    """What encoders share that need no arrays."""

    def init(self, clips: Callable[[], np.ndarray] | None = None) -> dict:
        """Keeps no arrays."""
        return {}

    def load(self, kept: dict) -> dict:
        """Returns what was kept."""
        return kept


def fingerprint(file: WeightsFile) -> dict[str, np.ndarray]:
    """{"sha256": uint8 [32]} of the file's bytes, or of a folder's weight files in order of their names: what a
    checkpoint keeps in place of arrays that a file holds. Raises WeightsError without any file."""
    path, digest = Path(file.path), hashlib.sha256()
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not file.path or not path.exists() or not files:
        raise WeightsError(f"weights {file.path!r}: no such file or folder; give a local path")
    for one in files:
        with one.open("rb") as content:
            while piece := content.read(1 << 22):
                digest.update(piece)
    return {"sha256": np.frombuffer(digest.digest(), np.uint8)}


def check(file: WeightsFile, kept: Mapping[str, np.ndarray]) -> None:
    """Raises WeightsError where the file is not the one of that fingerprint."""
    if not np.array_equal(fingerprint(file)["sha256"], kept["sha256"]):
        raise WeightsError(f"{file.path}: not the weights that this run, checkpoint or cache was made with (sha256 "
                           f"{bytes(kept['sha256']).hex()[:16]}...)")


def load(file: WeightsFile, tables: Mapping[str, TensorTable], shapes: Mapping[str, jax.ShapeDtypeStruct]
         ) -> dict[str, np.ndarray]:
    """Our arrays, of the dtypes of `shapes`; one published tensor is in memory at a time.

    tables: by format; the one whose names the file has is taken, and the file may hold other components beside the
    encoder. Raises WeightsError naming file, key, expected and found: no file, names missing or unexpected, another
    shape, two components that fit.
    """
    with open_weights(file) as tensors:
        prefix, table = _fitting(file.path, tables, set(tensors))
        found = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
        found |= {name: found[copy] for copy, name in table.copies if name not in found}
        expected = published_shapes(table, shapes)
        params = {name: np.empty(x.shape, x.dtype) for name, x in shapes.items()}
        for entry in table.entries:
            x = tensors[found[entry.published]]
            if x.shape != expected[entry.published].shape:
                raise WeightsError(f"{file.path}: {prefix}{entry.published} (ours: {entry.native}): expected shape "
                                   f"{expected[entry.published].shape}, found {x.shape}; is it the file of another "
                                   "model size?")
            entry.slice_of(params[entry.native])[...] = entry.transform.to_native(x, 0)
        for copy, name in table.copies:
            key, repeat = found[name], found.get(copy, found[name])
            if repeat != key and not np.array_equal(tensors[repeat], tensors[key]):
                raise WeightsError(f"{file.path}: {prefix}{copy} should repeat {prefix}{name}, but differs")
    return params


class _Fit(NamedTuple):
    """How the names under a prefix fit a table."""

    form: str
    prefix: str
    table: TensorTable
    missing: list[str]
    unexpected: list[str]

    @property
    def errors(self) -> int:
        """The number of names that do not fit."""
        return len(self.missing) + len(self.unexpected)

    def __str__(self):
        return f"{self.form} under {self.prefix!r}" if self.prefix else self.form


def _fitting(path: str, tables: Mapping[str, TensorTable], names: set[str]) -> tuple[str, TensorTable]:
    """(prefix, table) that fit. An encoder is all of a file, or a component of a larger checkpoint: then its names are
    under a prefix, and names elsewhere are other components'."""
    whole = [_fit(form, table, "", names) for form, table in tables.items()]
    inside = [_fit(form, table, prefix, names) for form, table in tables.items() for prefix in _prefixes(table, names)]
    candidates = [fit for fit in whole if not fit.missing] or whole + inside
    fits = [fit for fit in candidates if not fit.errors]
    if len(fits) > 1:
        raise WeightsError(f"{path}: holds more than one such encoder: {', '.join(map(str, fits))}; give a file of one")
    if fits:
        return fits[0].prefix, fits[0].table
    near = min(candidates, key=lambda fit: fit.errors)
    raise WeightsError(f"{path}: names fit no known format ({', '.join(tables)}), alone or under a prefix. Of the "
                       f"nearest, {near}: {len(near.missing)} missing {near.missing[:5]}, {len(near.unexpected)} "
                       f"unexpected {near.unexpected[:5]}")


def _prefixes(table: TensorTable, names: set[str]) -> list[str]:
    """What stands, up to a dot, before any of the table's names in longer ones."""
    known = {entry.published for entry in table.entries} | {copy for copy, _ in table.copies}
    return sorted({name[:dot.end()] for name in names for dot in re.finditer(r"\.", name) if name[dot.end():] in known})


def _fit(form: str, table: TensorTable, prefix: str, names: set[str]) -> _Fit:
    names = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    copies, wanted = dict(table.copies), {entry.published for entry in table.entries}
    missing = wanted - names - {copies[name] for name in names if name in copies}
    unexpected = {name for name in names - wanted - copies.keys() if not re.fullmatch(table.unread, name)}
    return _Fit(form, prefix, table, *(sorted(prefix + name for name in kind) for kind in (missing, unexpected)))


@contextlib.contextmanager
def open_weights(file: WeightsFile) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields names -> arrays, which are read when asked for. Raises WeightsError without any file."""
    path = Path(file.path)
    if not file.path or not path.exists():
        raise WeightsError(f"weights {file.path!r}: no such file or folder; give a local path")
    if path.is_dir():
        stems = [stem for stem in STEMS if list(path.glob(f"{stem}*.safetensors*"))]
        if not stems:
            raise WeightsError(f"{path}: holds neither of {', '.join(f'{stem}.safetensors' for stem in STEMS)}")
        yield Weights(path, stems[0])
    else:
        with open_tensors(path, file.allow_pickle) as tensors:
            yield _Lazy(tensors, path)


class _Lazy(Mapping):
    """An opened file as a mapping."""

    def __init__(self, file, path: Path):
        self._file, self._names, self._path = file, set(file.keys()), path

    def __getitem__(self, name: str) -> np.ndarray:
        return read_tensor(self._file, name, self._path)

    def __contains__(self, name) -> bool:
        return name in self._names

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)
