"""Trains a world-action model, or goes on where WORKDIR's newest checkpoint stands.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.train.steps=50]

SIGTERM and SIGINT save and exit with 143 (a second SIGINT does not wait for the save): only a run that reached
train.steps exits with 0. A loss that is not finite, a full disk, a workdir in which another run trains or a checkpoint
that does not fit stop the run with one sentence and exit code 1; the last good checkpoint stays.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import jax
from absl import flags

from launch.evaluation.held_out import HeldOut
from launch.planning import memory
from launch.reporting import figures
from launch.setup import fit, provenance, training
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment
from launch.setup.initial import Initial
from launch.setup.resume import find_resumable, make_meta
from launch.setup.values import ConfigError
from launch.supervision import cloud_ledger, hosts, owner
from launch.supervision.child import STOPPED
from launch.supervision.ledger import Ledger, read_attempts, summarize
from launch.supervision.watchdog import Watchdog
from world_model.parallel import host_rows
from world_model.training import checkpoint, checkpoint_reader, metrics, records
from world_model.training.checkpoint_writer import Checkpoints

CONFIG = launch_flags.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "directory of checkpoints and metrics; made if missing")


def train(experiment, workdir: Path | str) -> bool:
    """The whole run of an Experiment (launch/setup/experiment.py). Returns whether train.steps were reached.

    Raises CheckpointError, NonFiniteLoss, OutOfMemory, ValueError or OSError with a sentence for the person who started
    it.
    """
    if "://" in str(workdir):
        raise ValueError(f"--workdir={workdir}: a mounted folder is needed, as every host sees it (docs/pods.md)")
    workdir, began = Path(workdir), time.time()
    with contextlib.ExitStack() as guard, hosts.StopSignal() as stop:
        # Mesh and model: whatever can be wrong in the config is found before any data is read.
        name = experiment.config.log.cloud_goodput
        cloud = cloud_ledger.open_log(name, workdir.name) if jax.process_index() == 0 else None
        fit.check_kernel(experiment.config)
        experiment = experiment.fitted()
        config, mesh = experiment.config, training.make_mesh(experiment.config)
        make_state, target = training.make_target(experiment, mesh)
        guard.enter_context(memory.explained(config, target, mesh))

        # The workdir and, in it, no half-written save; then data.
        workdir.mkdir(parents=True, exist_ok=True)
        guard.enter_context(owner.owned(workdir))
        checkpoints = Checkpoints(workdir / "checkpoints", keep_last=config.checkpoint.keep_last,
                                  keep_every=config.checkpoint.keep_every, keep_best=config.checkpoint.keep_best,
                                  hashes=config.checkpoint.hashes)
        guard.callback(checkpoints.close)
        data = experiment.data()
        resumed, base = find_resumable(checkpoints.directory, target, config, data, say)
        hosts.agree_on("newest checkpoint", resumed, config.hosts.connect_seconds)
        start = 0 if resumed is None else resumed
        if resumed is None:
            if initial := Initial.of(config):
                say(initial.describe(data.statistics))
            kept = experiment.fit_encoders(data)
        else:
            kept = checkpoint_reader.read_frozen(checkpoints.directory, start)

        # Encoders and what they make of held-out windows; then the state, the newest checkpoint's or a fresh one: a run
        # from a cache needs no room for both at once.
        encoders = training.place(experiment.training_arrays(kept), mesh)
        held_out = HeldOut(experiment, data, mesh, kept, encoders, say) if config.evaluate.every or (
            config.evaluate.rollout_every) else None
        current = training.start(experiment, make_state, target) if resumed is None else checkpoint_reader.restore(
            checkpoints.directory, start, target, config.checkpoint.hashes)
        loader = data.loader(start, *host_rows.host_share(mesh))
        if resumed is not None:
            loader.check_resume(checkpoint.read_json(checkpoints.directory, start, "data"))
        meta = make_meta(target, kept, config, data, base)
        say(provenance.introduce(config, workdir, mesh, target, start, data.statistics))
        times = workdir / "goodput.jsonl" if jax.process_index() == 0 else None
        ledger = Ledger(times, start, began, cloud)

        # The step, and what the run says of itself.
        step_fn = training.make_step(experiment, target, encoders)
        history = metrics.History()
        clock = metrics.Clock(config.train.global_batch_size, experiment.model.flops_per_sample, mesh.size)
        writer = records.Writer(workdir, start, config.log.also)

        def report(step: int) -> None:
            if record := history.collect(step):
                record |= clock.measure(step, config.train.steps - step)
                ledger.ends("steps", step, record["data_wait"])
                writer.write(step, record)
                say(metrics.progress(step, config.train.steps, record, held_out.last if held_out else {}))

        def evaluate(step: int) -> None:
            record, picture = held_out(current, step)
            writer.write(step, record)
            say(metrics.progress(step, config.train.steps, {}, held_out.last))
            if picture is not None:
                writer.picture(step, "rollout", picture, figures.png)
            ledger.ends("evaluate", step)
            clock.restart()

        def save(step: int) -> None:
            checkpoints.save(step, current, data=loader.state(), meta=meta, frozen=kept,
                             loss=held_out.loss_at(step) if held_out else None)
            ledger.ends("checkpoint", step)

        try:
            stacks = workdir / f"stacks_{jax.process_index()}.txt"
            with jax.set_mesh(mesh), Watchdog(stacks, config.hosts.stuck_factor) as watchdog:
                saved = resumed
                ledger.ends("startup", start)
                for step in range(start + 1, config.train.steps + 1):
                    if stop.requested(step):
                        break
                    rows = clock.next_batch(loader)
                    batch = host_rows.put_batch(rows, mesh)
                    if step == start + 1:
                        ledger.ends("startup", start)  # the first batch belongs to it
                        step_fn = compile_step(step_fn, target, batch, encoders)
                        ledger.ends("compile", start)
                        clock.restart()
                    ledger.starts(step)
                    current, measured = step_fn(current, batch, encoders)
                    clock.started(step, measured)
                    history.add(step, measured, samples_of(rows))
                    checkpoints.check()
                    if (step - 1) % config.train.log_every == 0:
                        report(step - 1)  # it has ended: the devices go on with this one meanwhile
                    if held_out and held_out.due(step):
                        report(step)
                        with watchdog.paused():
                            evaluate(step)
                    if step % config.checkpoint.every == 0 or step == config.train.steps:
                        report(step)  # before the save: a state with a bad loss is never written
                        save(step)
                        saved = step
                    watchdog.step()
                done = int(current["step"])
                if saved != done:
                    report(done)
                    save(done)
                checkpoints.close()  # what is said to be saved is saved
                ledger.ends("checkpoint", done)
                if done >= config.train.steps:
                    ledger.done()
                say(f"done at step {done}" if done >= config.train.steps else
                    f"stopped by a signal at step {done} of {config.train.steps}, saved; start again to go on")
                if times:
                    say(summarize(read_attempts(times)))
                return done >= config.train.steps
        except (metrics.NonFiniteLoss, OSError) as error:
            checkpoints.close()
            good = checkpoint.steps(checkpoints.directory)
            where = f"step {good[-1]} in {checkpoints.directory}" if good else "none"
            raise type(error)(f"{error}; last good checkpoint: {where}") from error
        finally:
            loader.close()
            writer.close()


def compile_step(step_fn, *args: dict):
    """Compiles ahead of the first call, to tell the time and the memory it takes."""
    began = time.monotonic()
    compiled = step_fn.lower(*args).compile()
    memory = compiled.memory_analysis()
    held, scratch = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
    say(f"compiled in {time.monotonic() - began:.1f} s; per device {held:.0f} MiB of state, encoders and batch, "
        f"{scratch:.0f} MiB of temporaries")
    return compiled


def samples_of(rows: dict):
    """What names this host's samples, should the loss of the batch be bad."""
    ids = {name: rows[name] for name in ("dataset_id", "episode_index", "start", "sample_index")}
    return lambda: "; ".join(f"{name} {values.tolist()}" for name, values in ids.items())


def say(text: str) -> None:
    """One process speaks."""
    if jax.process_index() == 0:
        print(text, flush=True)


def run(experiment, workdir: Path | str) -> int:
    """`train` on all hosts, with the expected failures as one sentence and exit code 1; STOPPED before the end."""
    try:
        config = experiment.config
        hosts.join(config.hosts.connect_seconds, config.hosts.heartbeat_seconds)
        hosts.agree(provenance.as_json(config), str(workdir), provenance.code_version(), config.hosts.connect_seconds)
        return 0 if train(experiment, workdir) else STOPPED
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
    return run(experiment, WORKDIR.value)


if __name__ == "__main__":
    launch_flags.run(main)
