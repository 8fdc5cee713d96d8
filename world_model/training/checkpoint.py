"""Checkpoints: everything that a run needs to go on, restorable onto any mesh.

    CHECKPOINTS/<step>/state    arrays by flat name (world_model/training/state.py), written by Orbax in parallel
                      frozen    arrays of fitted encoders, by flat name; only where there are any
                      data      JSON: the position of every data source
                      meta      JSON: config, statistics and their hash, tables of shapes and of the arrays' hashes,
                                code version, schema

Every part of a whole step holds a commit mark; a step that lacks one is never read. checkpoint_writer.py writes them.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from world_model import hashing, kinds
from world_model.training.state import flatten, unflatten

SCHEMA = 1
LARGEST = 2**40  # elements of an array
COMMIT_MARK = "commit_success.txt"


def dtype_name(value) -> str:
    """A dtype of arrays by its name."""
    with contextlib.suppress(TypeError):
        if isinstance(value, str) and (found := np.dtype(value)).name == value and not found.hasobject:
            return ""
    return f" = {value!r:.99}: expected the name of a dtype"


def shape(value) -> str:
    """The shape of an array that could lie on disk."""
    problem = kinds.list_of(kinds.whole(high=LARGEST))(value)
    return problem or ("" if math.prod(value) <= LARGEST else f" = {value}: expected at most {LARGEST} elements")


_ARRAYS = kinds.map_of(kinds.row(dtype_name, shape))
BASE = kinds.optional(kinds.fields(dict.fromkeys(("format", "base_hash"), kinds.text), ("format", "base_hash")))
_HASHES = kinds.map_of(kinds.text)
ITEMS = {"data": kinds.MAP, "meta": kinds.fields({
    "schema": kinds.whole(), "family": kinds.text, "config": kinds.MAP,
    "statistics": kinds.map_of(kinds.MAP), "statistics_hash": kinds.text, "arrays": _ARRAYS,
    "frozen": kinds.map_of(_ARRAYS), "hashes": _HASHES, "frozen_hashes": _HASHES,
    "base": BASE},
    required=("schema", "family", "config", "statistics", "statistics_hash", "arrays", "frozen"))}


class CheckpointError(RuntimeError):
    """Raised where a checkpoint cannot be written, read or used; the message says which, where and why."""


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def step_paths(directory: Path) -> list[Path]:
    """Lists the folders of all steps, oldest first, half-written ones among them."""
    found = [path for path in directory.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def is_committed(path: Path) -> bool:
    """Whether every part of a step's folder holds its commit mark."""
    parts = [path, path / "state", path / "data", path / "meta"]
    return all((part / COMMIT_MARK).is_file() for part in parts)


def steps(directory: Path | str) -> list[int]:
    """Lists the whole checkpoints, oldest first; half-written ones do not count.

    Raises CheckpointError where there is no directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory of checkpoints")
    return [int(path.name) for path in step_paths(directory) if is_committed(path)]


def locate(directory: Path | str, step: int | None = None) -> int:
    """Returns `step`, or the newest whole one for None. Raises CheckpointError naming what there is."""
    there = steps(directory)
    if not there:
        raise CheckpointError(f"{directory} holds no whole checkpoint")
    if step is not None and step not in there:
        raise CheckpointError(f"{directory} has no whole checkpoint of step {step}; there are {there}")
    return there[-1] if step is None else step


def read_json(directory: Path | str, step: int, item: str) -> dict:
    """Reads the `meta` or `data` item of a step. Raises CheckpointError where it cannot be read."""
    path = Path(directory) / str(step) / item / "metadata"
    try:
        return kinds.read(path, ITEMS[item])
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def table(tree: dict) -> dict[str, list]:
    """Returns {flat name: [dtype, shape]} for a tree of arrays or abstract arrays."""
    return {name: [np.dtype(leaf.dtype).name, list(leaf.shape)] for name, leaf in flatten(tree).items()}


def make_meta(state: dict, frozen: dict, *, family: str, config: dict, statistics: dict, statistics_hash: str,
              code_version: str, base: dict | None = None) -> dict:
    """Makes the JSON that says what a checkpoint is.

    base: {format, base_hash} of the published weights that the run began with.
    """
    return {"schema": SCHEMA, "family": family, "config": config, "statistics": statistics,
            "statistics_hash": statistics_hash, "code_version": code_version, "base": base, "arrays": table(state),
            "frozen": unflatten(table(frozen), frozen)}


def hashes_of(state: dict, frozen: dict) -> dict:
    """What a checkpoint's meta gains: hashes of its arrays by flat name, but of those that are written in pieces."""
    arrays = np.ndarray | np.generic | jax.Array
    whole = {name: leaf for name, leaf in flatten(state).items() if isinstance(leaf, arrays)}
    return {"hashes": hashing.hashes(whole), "frozen_hashes": hashing.hashes(flatten(frozen))}


def add_hashes(directory: Path | str, step: int, hashes: dict[str, str]) -> None:
    """Adds hashes of arrays that were written in pieces to a whole step's meta."""
    meta = read_json(directory, step, "meta")
    meta["hashes"] = meta.get("hashes", {}) | hashes
    (Path(directory) / str(step) / "meta" / "metadata").write_text(json.dumps(meta))


def check_resume(saved: dict, now: dict) -> None:
    """Checks that a run may go on from a checkpoint; `saved` and `now` are metas.

    Raises CheckpointError naming the first difference in schema, family, base, statistics or arrays. Configs may
    differ (more steps, another mesh).
    """
    for key, what in (("schema", "checkpoint format"), ("family", "model family")):
        if saved[key] != now[key]:
            raise CheckpointError(f"checkpoint of another {what}: {saved[key]!r}, this run's is {now[key]!r}")
    if saved.get("base") != now["base"]:
        raise CheckpointError(f"checkpoint of a run from other weights: it began with {saved.get('base')}, this run's "
                              f"train.init_from with {now['base']}; name those, or start a new workdir")
    if saved["statistics_hash"] != now["statistics_hash"]:
        found = next(differences(saved["statistics"], now["statistics"]), "only their hash differs")
        raise CheckpointError(f"checkpoint of other normalisation statistics: {found}; go on with the "
                              "checkpoint's (data.statistics), or start a new workdir")
    if found := next(differences(saved["arrays"], now["arrays"]), None):
        raise CheckpointError(f"checkpoint of another model shape or structure: {found}")


def differences(a, b, sides=("the checkpoint", "this run"), path: str = "") -> Iterator[str]:
    """Yields a sentence for each difference between two JSON values, in the order of the keys."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        if a != b:
            yield f"{path} is {a} in {sides[0]}, {b} in {sides[1]}"
        return
    for key in sorted(a.keys() | b.keys()):
        name = f"{path}.{key}" if path else key
        if key in a and key in b:
            yield from differences(a[key], b[key], sides, name)
        else:
            yield f"{name} is only in {sides[0] if key in a else sides[1]}"


def restore(directory: Path | str, step: int, target: dict, check: bool = True) -> dict:
    """Reads the arrays of `target`, a nested dict of jax.ShapeDtypeStruct, each into the sharding that it names.

    A target of some components, such as {"params": ...}, reads those alone. check: compare with the hashes that were
    written. Raises CheckpointError naming the first array that is missing, of another shape or dtype, or damaged.
    """
    meta = read_json(directory, step, "meta")
    wanted, there = table(target), meta["arrays"]
    components = tuple(f"{name}." for name in target)
    there = {name: entry for name, entry in there.items() if f"{name}.".startswith(components)}
    if found := next(differences(there, wanted), None):
        raise CheckpointError(f"checkpoint {Path(directory) / str(step)} does not fit: {found}")
    path = Path(directory) / str(step) / "state"
    flat = _read(path, flatten(target))
    if check:
        _check(path, meta.get("hashes", {}), flat)
    return unflatten(flat, target)


class StoredArray:
    """An array of a checkpoint that is read, and checked, when it is asked for: whole by NumPy, a layer by its index.

    Of all arrays that `stored` gave together only the one that was read last stays in memory.
    """

    def __init__(self, reader: "_Reader", name: str, dtype: str, shape: list[int]):
        self._reader, self._name = reader, name
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._reader.whole(self._name, self.shape, self.dtype), dtype)

    def __getitem__(self, index) -> np.ndarray:
        return np.asarray(self)[index]

    def placed(self, sharding: jax.sharding.Sharding) -> jax.Array:
        """Reads it into its places on devices; no host and no device holds more than its share."""
        return self._reader.read({self._name: jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=sharding)})


class _Reader:
    """Reads arrays of one step, one at a time."""

    def __init__(self, directory: Path | str, step: int, meta: dict):
        self._path, self._hashes = Path(directory) / str(step) / "state", meta.get("hashes", {})
        self._last: tuple[str, np.ndarray] | None = None

    def whole(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if not self._last or self._last[0] != name:
            self._last = None  # which makes room
            self._last = name, self.read({name: np.empty(shape, dtype)})
        return self._last[1]

    def read(self, flat: dict):
        found = _read(self._path, flat)
        _check(self._path, self._hashes, found)
        return next(iter(found.values()))


def stored(directory: Path | str, step: int, components: Sequence[str]) -> dict[str, StoredArray]:
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
