"""Checkpoints: everything that a run needs to go on, restorable onto any mesh.

    CHECKPOINTS/<step>/state    arrays by flat name (`flatten`), written by Orbax in parallel
                      frozen    arrays of fitted encoders, by flat name; only where there are any
                      data      JSON: the position of every data source
                      meta      JSON: config, statistics and their hash, tables of shapes and of the arrays' hashes,
                                code version, schema

Every part of a whole step holds a commit mark; a step that lacks one is never read. checkpoint_writer.py writes them,
checkpoint_reader.py reads their arrays.
"""

import contextlib
import hashlib
import json
import math
from pathlib import Path

import jax
import numpy as np

from world_model import hashing, kinds
from world_model.differences import first_difference

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


def flatten(tree: dict, prefix: str = "") -> dict:
    """Turns {"opt": {"mu": {"a.kernel": x}}} into {"opt.mu.a.kernel": x}: the names on disk."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def unflatten(flat: dict, like: dict, prefix: str = "") -> dict:
    """Inverts `flatten`, into the structure of `like`."""
    return {name: unflatten(flat, value, f"{prefix}{name}.") if isinstance(value, dict) else
            flat[prefix + name]
            for name, value in like.items()}


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


def weights_hash(meta: dict, averaged: bool) -> str | None:
    """One hash of a checkpoint's weights, with their averages or without; None where its meta has no hashes."""
    parts = ("params.", "ema.") if averaged else ("params.",)
    each = {name: found for name, found in meta.get("hashes", {}).items() if name.startswith(parts)}
    return hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest() if each else None


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
        found = first_difference(saved["statistics"], now["statistics"]) or "only their hash differs"
        raise CheckpointError(f"checkpoint of other normalisation statistics: {found}; go on with the "
                              "checkpoint's (data.statistics), or start a new workdir")
    if found := first_difference(saved["arrays"], now["arrays"]):
        raise CheckpointError(f"checkpoint of another model shape or structure: {found}")
