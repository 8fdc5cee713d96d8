"""Writer of checkpoints: asynchronous, each step committed atomically, old ones deleted.

A step is written beside its final name and renamed once it is whole, with a commit mark in each part. Old steps are
renamed away before they are deleted. checkpoint.py says what a step holds, checkpoint_reader.py reads it.
"""

import contextlib
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging

from world_model.training import checkpoint
from world_model.training.checkpoint import CheckpointError, first_line, hashes_of, is_committed, step_paths, steps

TRASH = "deleted"


class Checkpoints:
    """Writer of one run's checkpoints. Saves are asynchronous: `save` returns once arrays have left the devices.

    The keep_last newest steps are kept, for ever those that divide by keep_every (0: none), and with keep_best the one
    that was saved with the least loss. A failed write raises
    CheckpointError at the next `save`, `check` or `close`; earlier checkpoints are untouched.
    """

    def __init__(self, directory: Path | str, *, keep_last: int, keep_every: int = 0, keep_best: bool = False,
                 hashes: bool = True):
        if keep_last < 1:
            raise ValueError(f"checkpoint.keep_last = {keep_last}: at least the newest checkpoint is kept")
        self.directory, self._hashes = Path(directory).absolute(), hashes
        logging.get_absl_logger().addFilter(_is_not_raised)
        policies = [ocp.checkpoint_managers.LatestN(keep_last)]
        if keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        if keep_best:
            policies.append(ocp.checkpoint_managers.BestN(
                n=1, get_metric_fn=lambda metrics: metrics["loss"], reverse=True,
                keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True, todelete_subdir=TRASH,
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies))
        with _as_checkpoint_error("open", self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                _clean_up(self.directory)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def save(self, step: int, state: dict, *, data: dict, meta: dict, frozen: dict, loss: float | None = None) -> None:
        """Starts writing; `meta` is what `checkpoint.make_meta` returns, and gains the arrays' hashes. Waits for an
        earlier save first. loss: by which `keep_best` judges."""
        if self._hashes:
            meta = meta | hashes_of(state, frozen)
        items = {"state": ocp.args.PyTreeSave(checkpoint.flatten(state)), "data": ocp.args.JsonSave(data),
                 "meta": ocp.args.JsonSave(meta)}
        if checkpoint.flatten(frozen):
            items["frozen"] = ocp.args.PyTreeSave(checkpoint.flatten(frozen))
        with _as_checkpoint_error("write", self.directory):
            self._wait()
            self._manager.save(step, args=ocp.args.Composite(**items),
                               metrics=None if loss is None else {"loss": loss})
        self._pending = self._pool.submit(self._finish_save)

    def check(self) -> None:
        """Raises CheckpointError if a save has failed meanwhile. Costs microseconds: call it every step."""
        if self._pending and self._pending.done():
            with _as_checkpoint_error("write", self.directory):
                self._wait()

    def close(self) -> None:
        """Waits for the last save; closing twice is fine. Raises CheckpointError if the save failed."""
        with _as_checkpoint_error("write", self.directory):
            try:
                self._wait()
            finally:
                self._manager.close()  # also after a failure: no thread writes any more when this returns
        self._pool.shutdown()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _finish_save(self) -> None:
        self._manager.wait_until_finished()  # raises what went wrong; Orbax's own check_for_errors misses it
        if jax.process_index() == 0:
            _empty_trash(self.directory)


def _empty_trash(directory: Path) -> None:
    for path in (directory / TRASH).glob("*"):
        shutil.rmtree(path)


def _clean_up(directory: Path) -> None:
    """Deletes what an earlier run left to be deleted, and moves its half-written steps aside."""
    _empty_trash(directory)
    for path in step_paths(directory):
        if not is_committed(path):
            aside = path.with_name(f"{path.name}.incomplete")
            logging.warning("%s is half written and not used; moved to %s", path, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _is_not_raised(record) -> bool:
    """Filters what Orbax logs: a traceback in each thread that an error passes before it is raised.

    `_as_checkpoint_error` says such an error once.
    """
    return not (record.exc_info and "orbax" in record.pathname)


@contextlib.contextmanager
def _as_checkpoint_error(doing: str, directory: Path):
    """Turns whatever the storage raises into one sentence that names the last good checkpoint."""
    try:
        yield
    except Exception as error:
        good = steps(directory) if directory.is_dir() else []
        last = f"the last good checkpoint is step {good[-1]}" if good else "there is no earlier checkpoint"
        raise CheckpointError(f"cannot {doing} {directory}: {first_line(error)}; {last}") from error
