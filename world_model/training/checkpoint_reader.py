"""Reads the arrays of checkpoints onto any mesh, and checks them by the hashes that were written."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from world_model import hashing
from world_model.differences import first_difference
from world_model.training.checkpoint import CheckpointError, first_line, flatten, read_json, table, unflatten


def restore(directory: Path | str, step: int, target: dict, check: bool = True) -> dict:
    """Reads the arrays of `target`, a nested dict of jax.ShapeDtypeStruct, each into the sharding that it names.

    A target of some components, such as {"params": ...}, reads those alone. check: compare with the hashes that were
    written. Raises CheckpointError naming the first array that is missing, of another shape or dtype, or damaged.
    """
    meta = read_json(directory, step, "meta")
    wanted, there = table(target), meta["arrays"]
    components = tuple(f"{name}." for name in target)
    there = {name: entry for name, entry in there.items() if f"{name}.".startswith(components)}
    if found := first_difference(there, wanted):
        raise CheckpointError(f"checkpoint {Path(directory) / str(step)} does not fit: {found}")
    path = Path(directory) / str(step) / "state"
    flat = _read(path, flatten(target))
    if check:
        _check(path, meta.get("hashes", {}), flat)
    return unflatten(flat, target)


class StoredArray:
    """An array of a checkpoint that is read, and checked, when it is asked for: whole by NumPy, a layer by its index;
    in float32, whatever it was held in.

    Of all arrays that `stored` gave together only the one that was read last stays in memory.
    """

    def __init__(self, reader: "_Reader", name: str, dtype: str, shape: list[int]):
        self._reader, self._name, self._held = reader, name, np.dtype(dtype)
        self.shape, self.dtype = tuple(shape), np.dtype(np.float32)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._reader.whole(self._name, self.shape, self._held), dtype)

    def __getitem__(self, index) -> np.ndarray:
        return np.asarray(self)[index]

    def placed(self, sharding: jax.sharding.Sharding) -> jax.Array:
        """Reads it into its places on devices, in the dtype that it was held in; no host and no device holds more than
        its share."""
        return self._reader.read({self._name: jax.ShapeDtypeStruct(self.shape, self._held, sharding=sharding)})


class _Reader:
    """Reads arrays of one step, one at a time."""

    def __init__(self, directory: Path | str, step: int, meta: dict):
        self._path, self._hashes = Path(directory) / str(step) / "state", meta.get("hashes", {})
        self._last: tuple[str, np.ndarray] | None = None

    def whole(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if not self._last or self._last[0] != name:
            self._last = None  # the array read before makes room
            self._last = name, self.read({name: np.empty(shape, dtype)}).astype(np.float32, copy=False)
        return self._last[1]

    def read(self, flat: dict):
        found = _read(self._path, flat)
        _check(self._path, self._hashes, found)
        return next(iter(found.values()))


def stored_arrays(directory: Path | str, step: int, components: Sequence[str]) -> dict[str, StoredArray]:
    """{name without its component: array} of a state's components; a later one's stands for an earlier one's."""
    meta = read_json(directory, step, "meta")
    reader = _Reader(directory, step, meta)
    return {name.removeprefix(f"{component}."): StoredArray(reader, name, *entry)
            for component in components for name, entry in sorted(meta["arrays"].items())
            if name.startswith(f"{component}.")}


def read_arrays(
    directory: Path | str, step: int, wanted: Callable[[str], bool],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (flat name, whole array) for the state's wanted names, sorted; never more than one is in memory."""
    path, meta = Path(directory) / str(step) / "state", read_json(directory, step, "meta")
    for name, (dtype, shape) in sorted(meta["arrays"].items()):
        if wanted(name):
            found = _read(path, {name: np.empty(shape, dtype)})
            _check(path, meta.get("hashes", {}), found)
            yield name, found[name]


def read_frozen(directory: Path | str, step: int) -> dict:
    """Reads the fitted encoders' arrays, nested as they were saved; a part without arrays comes back as {}."""
    path, meta = Path(directory) / str(step) / "frozen", read_json(directory, step, "meta")
    wanted = {name: np.empty(shape, dtype) for name, (dtype, shape) in flatten(meta["frozen"]).items()}
    found = _read(path, wanted) if wanted else {}
    _check(path, meta.get("frozen_hashes", {}), found)
    return unflatten(found, meta["frozen"])


def _check(path: Path, written: dict[str, str], flat: dict) -> None:
    """Raises CheckpointError where an array is not the one whose hash was written; one without a hash passes."""
    found = hashing.hashes({name: array for name, array in flat.items() if name in written})
    if damaged := sorted(name for name, value in found.items() if value != written[name]):
        raise CheckpointError(f"{path}: {damaged[0]} is damaged: its hash is {found[damaged[0]]}, and "
                              f"{written[damaged[0]]} was written ({len(damaged)} of {len(found)} arrays are); remove "
                              "this step's folder to go on from an earlier one")


def _read(path: Path, flat: dict) -> dict:
    """Reads the named arrays of one item: numpy where the target is numpy, else by the target's sharding."""
    def restore_args(leaf):
        if isinstance(leaf, np.ndarray):
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    try:
        return ocp.PyTreeCheckpointer().restore(
            path.absolute(), args=ocp.args.PyTreeRestore(
                flat, restore_args={name: restore_args(leaf) for name, leaf in flat.items()}, partial_restore=True))
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {first_line(error)}") from error
