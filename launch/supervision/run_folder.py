"""A run's folder while it trains: the data at its place in them, checkpoints, metrics, and the ledger of its time."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax

from launch.evaluation.held_out import HeldOut
from launch.reporting import figures
from launch.setup import provenance, training
from launch.setup.initial import Initial
from launch.setup.resume import find_resumable, make_meta
from launch.supervision import hosts, owner
from launch.supervision.ledger import Ledger, read_attempts, summarize
from world_model.encoders import place
from world_model.parallel import host_rows
from world_model.training import checkpoint, checkpoint_reader, metrics, records
from world_model.training.checkpoint_writer import Checkpoints


class RunFolder:
    """What one run keeps in WORKDIR, from its start or its newest checkpoint on.

    experiment: fitted to the devices; make_state, target: of its state, on `mesh`; statistics: of its data, where they
    are known; ledger: (seconds since the epoch when the run began, cloud log); say: prints a line. `guard`
    closes everything. Raises CheckpointError, ValueError or OSError.
    """

    def __init__(self, experiment, workdir: Path, mesh, make_state: Callable[[], dict], target: dict,
                 statistics: dict | None, ledger: tuple, guard: contextlib.ExitStack, say: Callable[[str], None]):
        self.config, self._say, self.workdir = experiment.config, say, workdir
        # In it no half-written save; then data.
        workdir.mkdir(parents=True, exist_ok=True)
        guard.enter_context(owner.owned(workdir))
        kept = self.config.checkpoint
        self.checkpoints = Checkpoints(workdir / "checkpoints", keep_last=kept.keep_last, keep_every=kept.keep_every,
                                       keep_best=kept.keep_best, hashes=kept.hashes)
        guard.callback(self.checkpoints.close)
        self.data = experiment.data(statistics=statistics)
        self.saved, base = find_resumable(self.checkpoints.directory, target, self.config, self.data, say)
        hosts.agree_on("newest checkpoint", self.saved, self.config.hosts.connect_seconds)
        self.start = self.saved or 0
        if self.saved is None:
            if initial := Initial.from_config(self.config):
                say(initial.describe(self.data.statistics))
            self._kept = experiment.fit_encoders(self.data)
        else:
            self._kept = checkpoint_reader.read_frozen(self.checkpoints.directory, self.start)

        # Encoders and what they make of held-out windows; then the state, the newest checkpoint's or a fresh one: a run
        # from a cache needs no room for both at once.
        self.encoders = place(experiment.training_arrays(self._kept), mesh)
        evaluates = self.config.evaluate.every or self.config.evaluate.rollout_every
        self._held_out = HeldOut(experiment, self.data, mesh, self._kept, self.encoders, say) if evaluates else None
        self.initial_state = training.start(experiment, make_state, target) if self.saved is None else (
            checkpoint_reader.restore(self.checkpoints.directory, self.start, target, self.config.checkpoint.hashes))
        self.loader = self.data.loader(self.start, *host_rows.host_share(mesh))
        guard.callback(self.loader.close)
        if self.saved is not None:
            self.loader.check_resume(checkpoint.read_json(self.checkpoints.directory, self.start, "data"))
        self._meta = make_meta(target, self._kept, self.config, self.data.statistics, base)
        say(provenance.introduce(self.config, workdir, mesh, target, self.start, self.data.statistics))
        self._times = workdir / "goodput.jsonl" if jax.process_index() == 0 else None
        self.ledger = Ledger(self._times, self.start, *ledger)

        # What the run says of itself.
        self.history = metrics.History()
        self._writer = records.Writer(workdir, self.start, self.config.log.also)
        guard.callback(self._writer.close)

    def is_evaluated(self, step: int) -> bool:
        """Whether something is measured on held-out windows after a step."""
        return self._held_out is not None and self._held_out.due(step)

    def report(self, step: int, speed: dict[str, float]) -> None:
        """Writes and prints the steps since the last report. Raises NonFiniteLoss."""
        record = self.history.collect(step) | speed
        self.ledger.end_phase("steps", step, record["data_wait"])
        self._writer.write(step, record)
        self._print(step, record)

    def evaluate(self, step: int, current: dict) -> None:
        """Writes and prints what is measured on held-out windows."""
        record, picture = self._held_out(current, step)
        self._writer.write(step, record)
        self._print(step, {})
        if picture is not None:
            self._writer.picture(step, "rollout", picture, figures.png)
        self.ledger.end_phase("evaluate", step)

    def save(self, step: int, current: dict) -> None:
        """Writes a checkpoint, once a step."""
        if self.saved == step:
            return
        self.checkpoints.save(step, current, data=self.loader.state(), meta=self._meta, frozen=self._kept,
                              loss=self._held_out.loss_at(step) if self._held_out else None)
        self.saved = step
        self.ledger.end_phase("checkpoint", step)

    def close(self, step: int) -> None:
        """Waits until what is said to be saved is saved, and says how the run ended after `step`."""
        self.checkpoints.close()
        self.ledger.end_phase("checkpoint", step)
        if step >= self.config.train.steps:
            self.ledger.done()
        self._say(f"done at step {step}" if step >= self.config.train.steps else
                  f"stopped by a signal at step {step} of {self.config.train.steps}, saved; start again to go on")
        if self._times:
            self._say(summarize(read_attempts(self._times)))

    def last_good(self) -> str:
        """The newest whole checkpoint, in words."""
        self.checkpoints.close()
        good = checkpoint.steps(self.checkpoints.directory)
        return f"step {good[-1]} in {self.checkpoints.directory}" if good else "none"

    def _print(self, step: int, record: dict) -> None:
        held_out = self._held_out.last if self._held_out else {}
        self._say(metrics.progress(step, self.config.train.steps, record, held_out))
