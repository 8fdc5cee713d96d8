"""Trains a world-action model, or goes on where WORKDIR's newest checkpoint stands.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.train.steps=50]
    python -m launch.train --config=configs/quickstart.py --workdir=runs/seeds --seeds=0,1,2    # three runs at once

SIGTERM and SIGINT save and exit with 143 (a second SIGINT does not wait for the save): only a run that reached
train.steps exits with 0. A loss that is not finite, a full disk, a workdir in which another run trains or a checkpoint
that does not fit stop the run with one sentence and exit code 1; the last good checkpoint stays.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import flags

from launch.planning import memory
from launch.setup import fit, provenance, training
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment
from launch.setup.steps import Steps, StepsAtOnce
from launch.setup.values import ConfigError
from launch.supervision import cloud_ledger, hosts
from launch.supervision.child import STOPPED
from launch.supervision.run_folder import RunFolder
from launch.supervision.watchdog import Watchdog
from world_model.training import checkpoint, metrics

CONFIG = launch_flags.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "directory of checkpoints and metrics; made if missing")
SEEDS = flags.DEFINE_list("seeds", [], "trained at once, each in WORKDIR/seed_N; default: the config's alone")


def train(experiment, workdir: Path | str, seeds: Sequence[int] = ()) -> bool:
    """The whole run of an Experiment (launch/setup/experiment.py). Returns whether train.steps were reached.

    seeds: those of the runs that are trained at once, each in WORKDIR/seed_N; without any, it is the config's in
    WORKDIR. Raises CheckpointError, NonFiniteLoss, OutOfMemory, ValueError or OSError with a sentence for the person
    who started it.
    """
    if "://" in str(workdir):
        raise ValueError(f"--workdir={workdir}: a mounted folder is needed, as every host sees it (docs/pods.md)")
    if seeds and jax.process_count() > 1:
        raise ValueError(f"--seeds trains on one host, and there are {jax.process_count()}: start a run for each seed")
    with contextlib.ExitStack() as guard, hosts.StopSignal() as stop:
        folders, steps = open_runs(experiment, Path(workdir), seeds, guard)
        try:
            return loop(folders, steps, stop)
        except OSError as error:
            raise type(error)(f"{error}; last good checkpoint: {folders[0].last_good()}") from error


def open_runs(experiment, workdir: Path, seeds: Sequence[int], guard: contextlib.ExitStack
              ) -> tuple[list[RunFolder], Steps]:
    """The folders of all runs, and what steps them."""
    # Mesh and model: whatever can be wrong in the config is found before any data is read.
    began, name = time.time(), experiment.config.log.cloud_goodput
    cloud = cloud_ledger.open_log(name, workdir.name) if jax.process_index() == 0 else None
    fit.check_kernel(experiment.config)
    devices = jax.devices()[:1] if seeds else jax.devices()
    wanted = {workdir / f"seed_{seed}": experiment.with_seed(seed) for seed in seeds} or {workdir: experiment}
    folders: list[RunFolder] = []
    for path, each in wanted.items():
        fitted = each.fitted(devices)
        mesh = training.make_mesh(fitted.config, devices)
        make_state, target = training.make_target(fitted, mesh)
        guard.enter_context(memory.explained(fitted.config, target, mesh))
        statistics = folders[0].data.statistics if folders else None
        folders.append(RunFolder(fitted, path, mesh, make_state, target, statistics, (began, cloud), guard,
                                 functools.partial(say, run=f"{path.name}: " if seeds else "")))
    if len({folder.start for folder in folders}) > 1:
        stand = ", ".join(f"{folder.workdir.name} at {folder.start}" for folder in folders)
        raise ValueError(f"runs at once go on from one step, and these stand at others: {stand}; start those apart")
    encoders = [folder.encoders for folder in folders]
    return folders, StepsAtOnce(fitted, mesh, target, encoders) if seeds else Steps(fitted, mesh, target, encoders[0])


def loop(folders: list[RunFolder], steps: Steps, stop: hosts.StopSignal) -> bool:
    """Steps all runs to their end, or until `stop`; one whose loss is not finite leaves, and the others go on.

    Raises NonFiniteLoss in the end, or once none is left.
    """
    config, start, workdir = folders[0].config, folders[0].start, folders[0].workdir
    running, failed = dict(enumerate(folders)), list[str]()
    clock = metrics.Clock(config.train.global_batch_size * len(folders), steps.flops_per_sample, steps.devices)
    batches = joint_batches([folder.loader for folder in folders])

    def report(step: int) -> None:
        speed = clock.measure(step, config.train.steps - step)
        for index, folder in list(running.items()) if speed else []:
            try:
                folder.report(step, speed)
            except metrics.NonFiniteLoss as error:
                failed.append(f"{error}; last good checkpoint: {folder.last_good()}")
                del running[index]
        if not running:
            raise metrics.NonFiniteLoss("; ".join(failed))

    def save(step: int) -> None:
        report(step)  # before: a state with a bad loss is never written
        for index, folder in running.items():
            folder.save(step, steps.state_of(current, index))

    def end_phase(phase: str) -> None:
        for folder in folders:
            folder.ledger.end_phase(phase, start)

    with steps.context(), Watchdog(workdir / f"stacks_{jax.process_index()}.txt",
                                   config.hosts.stuck_factor) as watchdog:
        current, done = steps.joined([folder.initial_state for folder in folders]), start
        end_phase("startup")
        for step in range(start + 1, config.train.steps + 1):
            if stop.requested(step):
                break
            rows = clock.next_batch(batches)
            batch = steps.placed(rows)
            if step == start + 1:
                end_phase("startup")  # the first batch belongs to it
                steps.compile(batch, say)
                end_phase("compile")
                clock.restart()
            for folder in running.values():
                folder.ledger.start_step(step)
            current, measured = steps(current, batch)
            done = step
            clock.started(step, measured[0])
            for index, folder in running.items():
                folder.history.add(step, measured[index], samples_of(rows[index]))
                folder.checkpoints.check()
            if (step - 1) % config.train.log_every == 0:
                report(step - 1)  # it has ended: the devices go on with this one meanwhile
            if folders[0].is_evaluated(step):
                report(step)
                with watchdog.paused():
                    for index, folder in running.items():
                        folder.evaluate(step, steps.state_of(current, index))
                clock.restart()
            if step % config.checkpoint.every == 0 or step == config.train.steps:
                save(step)
            watchdog.step()
        save(done)
        for folder in running.values():
            folder.close(done)
    if failed:
        raise metrics.NonFiniteLoss("; ".join(failed))
    return done >= config.train.steps


def joint_batches(loaders: list) -> Iterator[list[dict]]:
    """Yields the next batch of every loader."""
    while True:
        yield [next(loader) for loader in loaders]


def samples_of(rows: dict):
    """What names this host's samples, should the loss of the batch be bad."""
    ids = {name: rows[name] for name in ("dataset_id", "episode_index", "start", "sample_index")}
    return lambda: "; ".join(f"{name} {values.tolist()}" for name, values in ids.items())


def say(text: str, run: str = "") -> None:
    """One process speaks; run: which is meant."""
    if jax.process_index() == 0:
        print(f"{run}{text}", flush=True)


def run(experiment, workdir: Path | str, seeds: Sequence[int] = ()) -> int:
    """`train` on all hosts, with the expected failures as one sentence and exit code 1; STOPPED before the end."""
    try:
        config = experiment.config
        hosts.join(config.hosts.connect_seconds, config.hosts.heartbeat_seconds)
        hosts.agree(provenance.as_json(config), str(workdir), provenance.code_version(), config.hosts.connect_seconds)
        return 0 if train(experiment, workdir, seeds) else STOPPED
    except (hosts.HostError, checkpoint.CheckpointError, metrics.NonFiniteLoss, memory.OutOfMemory, OSError,
            ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(f"error: host {jax.process_index()} of {jax.process_count()} lost another one or the network: "
              f"{str(error).splitlines()[0]}; the last committed checkpoint stays, start all hosts again",
              file=sys.stderr, flush=True)
        os._exit(1)  # leaving politely would wait for the dead


def main(argv: list[str]) -> int:
    if argv[1:] or not CONFIG.value or not WORKDIR.value:
        sys.exit(__doc__)
    try:
        experiment = Experiment(CONFIG.value)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    return run(experiment, WORKDIR.value, launch_flags.seeds(SEEDS.value))


if __name__ == "__main__":
    launch_flags.run(main, arguments=True)
