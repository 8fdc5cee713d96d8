"""Checkpoints: everything a run needs to go on, committed atomically, restorable onto any mesh.

    CHECKPOINTS/<step>/state    arrays by flat name (world_model/training/state.py), written by Orbax in parallel
                      frozen    arrays of fitted encoders, by flat name; only where there are any
                      data      JSON: the position of every data source
                      meta      JSON: config, statistics and their hash, table of shapes, code version, schema

A step is written beside its final name and renamed when whole, with a commit mark in each part; whatever
lacks one is never read. Old steps are renamed away before they are deleted.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from world_model.training.state import flatten, unflatten

SCHEMA = 1
COMMIT_MARK = "commit_success.txt"
TRASH = "deleted"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, read or used; the message says which, where and why."""


class Checkpoints:
    """Writer of one run's checkpoints. Saves are asynchronous: `save` returns once arrays have left the
    devices.

    The keep_last newest steps are kept, and for ever those that divide by keep_every (0: none). A failed
    write raises CheckpointError at the next `save`, `check` or `close`; earlier checkpoints are untouched.
    """

    def __init__(self, directory: Path | str, *, keep_last: int, keep_every: int = 0):
        if keep_last < 1:
            raise ValueError(f"checkpoint.keep_last = {keep_last}: at least the newest checkpoint is kept")
        self.directory = Path(directory).absolute()
        logging.get_absl_logger().addFilter(_not_raised)
        policies = [ocp.checkpoint_managers.LatestN(keep_last)]
        if keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True, todelete_subdir=TRASH,
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies))
        with _explained("open", self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                self._tidy()
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._pool, self._pending = ThreadPoolExecutor(1), None

    def save(self, step: int, state: dict, *, data: dict, meta: dict, frozen: dict) -> None:
        """Starts writing; `meta` is what `make_meta` returns. Waits for an earlier save first."""
        items = {"state": ocp.args.PyTreeSave(flatten(state)), "data": ocp.args.JsonSave(data),
                 "meta": ocp.args.JsonSave(meta)}
        if flatten(frozen):
            items["frozen"] = ocp.args.PyTreeSave(flatten(frozen))
        with _explained("write", self.directory):
            self._wait()
            self._manager.save(step, args=ocp.args.Composite(**items))
        self._pending = self._pool.submit(self._settle)

    def check(self) -> None:
        """Raises CheckpointError if a save has failed meanwhile. Costs microseconds: call it every step."""
        if self._pending and self._pending.done():
            with _explained("write", self.directory):
                self._wait()

    def close(self) -> None:
        """Waits for the last save; closing twice is fine. Raises CheckpointError if the save failed."""
        with _explained("write", self.directory):
            try:
                self._wait()
            finally:
                self._manager.close()  # also after a failure: no thread writes any more when this returns
        self._pool.shutdown()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _settle(self) -> None:
        self._manager.wait_until_finished()  # raises what went wrong; Orbax's own check_for_errors misses it
        if jax.process_index() == 0:
            for path in (self.directory / TRASH).glob("*"):
                shutil.rmtree(path)

    def _tidy(self) -> None:
        for path in (self.directory / TRASH).glob("*"):
            shutil.rmtree(path)
        for path in _step_paths(self.directory):
            if not _committed(path):
                aside = path.with_name(f"{path.name}.incomplete")
                logging.warning("%s is half written and not used; moved to %s", path, aside.name)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)


def _not_raised(record) -> bool:
    """Orbax logs a traceback in each thread that an error passes and then raises it; `_explained` tells it once."""
    return not (record.exc_info and "orbax" in record.pathname)


@contextlib.contextmanager
def _explained(doing: str, directory: Path):
    """Turns whatever the storage raises into one sentence that names the last good checkpoint."""
    try:
        yield
    except Exception as error:
        good = steps(directory) if directory.is_dir() else []
        last = f"the last good checkpoint is step {good[-1]}" if good else "there is no earlier checkpoint"
        raise CheckpointError(f"cannot {doing} {directory}: {_reason(error)}; {last}") from error


def _reason(error: Exception) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _step_paths(directory: Path) -> list[Path]:
    found = [path for path in directory.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def _committed(path: Path) -> bool:
    parts = [path, path / "state", path / "data", path / "meta"]
    return all((part / COMMIT_MARK).is_file() for part in parts)


def steps(directory: Path | str) -> list[int]:
    """Whole checkpoints, oldest first; half-written ones do not count. Raises CheckpointError without any
    directory."""
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory of checkpoints")
    return [int(path.name) for path in _step_paths(directory) if _committed(path)]


def locate(directory: Path | str, step: int | None = None) -> int:
    """`step` if it is there, the newest whole one for None. Raises CheckpointError naming what there is."""
    there = steps(directory)
    if not there:
        raise CheckpointError(f"{directory} holds no whole checkpoint")
    if step is not None and step not in there:
        raise CheckpointError(f"{directory} has no whole checkpoint of step {step}; there are {there}")
    return there[-1] if step is None else step


def read_json(directory: Path | str, step: int, item: str) -> dict:
    """The `meta` or `data` item of a step."""
    path = Path(directory) / str(step) / item / "metadata"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def table(tree: dict) -> dict[str, list]:
    """{flat name: [dtype, shape]} of arrays or abstract arrays."""
    return {name: [np.dtype(leaf.dtype).name, list(leaf.shape)] for name, leaf in flatten(tree).items()}


def make_meta(state: dict, frozen: dict, *, family: str, config: dict, statistics: dict, statistics_hash: str,
              code_version: str, base: dict | None = None) -> dict:
    """The JSON that says what a checkpoint is. base: {format, base_hash} of the published weights it began with."""
    return {"schema": SCHEMA, "family": family, "config": config, "statistics": statistics,
            "statistics_hash": statistics_hash, "code_version": code_version, "base": base, "arrays": table(state),
            "frozen": unflatten(table(frozen), frozen)}


def check_resume(saved: dict, now: dict) -> None:
    """Raises CheckpointError naming the first difference that forbids going on: of schema, family, statistics
    or arrays.

    `saved` and `now` are metas; a differing config alone is allowed (more steps, another mesh).
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
    """Where two JSON values differ, one sentence each, in the order of the keys."""
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


def restore(directory: Path | str, step: int, target: dict) -> dict:
    """The arrays of `target` (nested dict of jax.ShapeDtypeStruct with shardings), each read into its place.

    A target of some components, such as {"params": ...}, reads those alone. Raises CheckpointError naming the
    first array that is missing or of another shape or dtype.
    """
    wanted, there = table(target), read_json(directory, step, "meta")["arrays"]
    components = tuple(f"{name}." for name in target)
    there = {name: entry for name, entry in there.items() if f"{name}.".startswith(components)}
    if found := next(differences(there, wanted), None):
        raise CheckpointError(f"checkpoint {Path(directory) / str(step)} does not fit: {found}")
    flat = _read(Path(directory) / str(step) / "state", flatten(target))
    return unflatten(flat, target)


def read_arrays(
    directory: Path | str, step: int, wanted: Callable[[str], bool],
) -> Iterator[tuple[str, np.ndarray]]:
    """(flat name, whole array) of the state's wanted names, sorted; never more than one is in memory."""
    path = Path(directory) / str(step) / "state"
    for name, (dtype, shape) in sorted(read_json(directory, step, "meta")["arrays"].items()):
        if wanted(name):
            yield name, _read(path, {name: np.empty(shape, dtype)})[name]


def read_frozen(directory: Path | str, step: int) -> dict:
    """The fitted encoders' arrays, nested as they were saved; a part without arrays comes back as {}."""
    kinds = read_json(directory, step, "meta")["frozen"]
    wanted = {name: np.empty(shape, dtype) for name, (dtype, shape) in flatten(kinds).items()}
    return unflatten(_read(Path(directory) / str(step) / "frozen", wanted) if wanted else {}, kinds)


def _read(path: Path, flat: dict) -> dict:
    """Named arrays of one item; numpy where the target is numpy, else by the target's sharding."""
    def how(leaf):
        if isinstance(leaf, np.ndarray):
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    try:
        return ocp.PyTreeCheckpointer().restore(
            path.absolute(), args=ocp.args.PyTreeRestore(
                flat, restore_args={name: how(leaf) for name, leaf in flat.items()}, partial_restore=True))
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
