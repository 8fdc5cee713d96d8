"""Frozen encoders' weights from a local file or folder: format found by its names, every tensor accounted for."""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from world_model.encoders.names import Table, their_shapes
from world_model.weights.safetensors_io import Weights, WeightsError
from world_model.weights.tensor_files import open_tensors

STEMS = ("diffusion_pytorch_model", "model")  # of safetensors folders


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights are."""

    path: str = ""  # a .safetensors file, a folder of them with an index, or (allow_pickle) a .pth or .pt file
    allow_pickle: bool = False  # read .pth through torch's weights_only unpickler


NOWHERE = Source()


def fingerprint(source: Source) -> dict[str, np.ndarray]:
    """{"sha256": uint8 [32]} of the file's bytes, of a folder's weight files in order of their names: what a checkpoint
    keeps in place of arrays that a file holds. Raises WeightsError without any file."""
    path, digest = Path(source.path), hashlib.sha256()
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not source.path or not path.exists() or not files:
        raise WeightsError(f"weights {source.path!r}: no such file or folder; give a local path")
    for file in files:
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                digest.update(block)
    return {"sha256": np.frombuffer(digest.digest(), np.uint8)}


def check(source: Source, kept: Mapping[str, np.ndarray]) -> None:
    """Raises WeightsError where the file is not the one of that fingerprint."""
    if not np.array_equal(fingerprint(source)["sha256"], kept["sha256"]):
        raise WeightsError(f"{source.path}: not the weights that this run, checkpoint or cache was made with (sha256 "
                           f"{bytes(kept['sha256']).hex()[:16]}...)")


def load(source: Source, tables: Mapping[str, Table], shapes: Mapping[str, jax.ShapeDtypeStruct]
         ) -> dict[str, np.ndarray]:
    """Our arrays, of the dtypes of `shapes`; one of theirs is in memory at a time.

    tables: by format; the one whose names the file has is taken. Raises WeightsError naming file, key, expected and
    found: no file, names missing or unexpected, another shape.
    """
    with opened(source) as tensors:
        table = _fitting(source.path, tables, set(tensors))
        expected = their_shapes(table, shapes)
        params = {name: np.empty(x.shape, x.dtype) for name, x in shapes.items()}
        stand_in = {name: copy for copy, name in table.copies if name not in tensors}
        for entry in table.entries:
            found = tensors[stand_in.get(entry.theirs, entry.theirs)]
            if found.shape != expected[entry.theirs].shape:
                raise WeightsError(f"{source.path}: {entry.theirs} (ours: {entry.ours}): expected shape "
                                   f"{expected[entry.theirs].shape}, found {found.shape}; is it the file of another "
                                   "model size?")
            entry.of(params[entry.ours])[...] = entry.transform.to_native(found, 0)
        for copy, name in table.copies:
            if copy in tensors and name in tensors and not np.array_equal(tensors[copy], tensors[name]):
                raise WeightsError(f"{source.path}: {copy} should repeat {name}, but differs")
    return params


def _fitting(path: str, tables: Mapping[str, Table], names: set[str]) -> Table:
    differences = {}
    for form, table in tables.items():
        copies = dict(table.copies)
        wanted = {e.theirs for e in table.entries}
        missing = sorted(wanted - names - {copies[n] for n in names if n in copies})
        unexpected = sorted(n for n in names - wanted - copies.keys() if not re.fullmatch(table.unread, n))
        if not missing and not unexpected:
            return table
        differences[form] = missing, unexpected
    form, (missing, unexpected) = min(differences.items(), key=lambda item: sum(map(len, item[1])))
    raise WeightsError(f"{path}: names fit no known format ({', '.join(tables)}). Of the nearest, {form}: "
                       f"{len(missing)} missing {missing[:5]}, {len(unexpected)} unexpected {unexpected[:5]}")


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Mapping[str, np.ndarray]]:
    """Names -> arrays, read when asked for."""
    path = Path(source.path)
    if not source.path or not path.exists():
        raise WeightsError(f"weights {source.path!r}: no such file or folder; give a local path")
    if path.is_dir():
        stems = [stem for stem in STEMS if list(path.glob(f"{stem}*.safetensors*"))]
        if not stems:
            raise WeightsError(f"{path}: holds neither of {', '.join(f'{stem}.safetensors' for stem in STEMS)}")
        yield Weights(path, stems[0])
    else:
        with open_tensors(path, source.allow_pickle) as file:
            yield _Lazy(file)


class _Lazy(Mapping):
    def __init__(self, file):
        self._file, self._names = file, set(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def __contains__(self, name) -> bool:
        return name in self._names

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)
