"""Trains a world-action model, or goes on where WORKDIR's newest checkpoint stands.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.train.steps=50]

SIGTERM saves and exits with 0. A loss that is not finite, a full disk or a checkpoint that does not fit stop
the run with one sentence and exit code 1; the last good checkpoint stays.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import jax
from absl import flags

from launch.planning import memory
from launch.setup import fit, training
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment
from launch.setup.provenance import as_json, code_version
from launch.supervision import cloud_ledger, hosts
from launch.supervision.ledger import Ledger, read_attempts, summarize
from launch.supervision.watchdog import Watchdog
from world_model.parallel import sharding
from world_model.training import checkpoint, metrics, state
from world_model.training.checkpoint_writer import Checkpoints

CONFIG = launch_flags.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "directory of checkpoints and metrics; made if missing")


def train(experiment, workdir: Path | str) -> None:
    """The whole run of an Experiment (launch/setup/experiment.py).

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

        # Data, then the state: the newest checkpoint's, or a fresh one.
        workdir.mkdir(parents=True, exist_ok=True)
        data = experiment.data(workdir)
        checkpoints = Checkpoints(workdir / "checkpoints", keep_last=config.checkpoint.keep_last,
                                  keep_every=config.checkpoint.keep_every)
        resumed = find_resumable(checkpoints.directory, target, config, data)
        hosts.agree_on("newest checkpoint", resumed, config.hosts.connect_seconds)
        start = 0 if resumed is None else resumed
        if resumed is None:
            kept = experiment.fit_encoders(data)
            current = training.start(experiment, make_state, target)
        else:
            kept = checkpoint.read_frozen(checkpoints.directory, start)
            current = checkpoint.restore(checkpoints.directory, start, target)
        loader = data.loader(start, *sharding.host_share(mesh))
        if resumed is not None:
            loader.check_resume(checkpoint.read_json(checkpoints.directory, start, "data"))
        meta = make_meta(target, kept, config, data)
        introduce(config, workdir, mesh, target, start)
        times = workdir / "goodput.jsonl" if jax.process_index() == 0 else None
        ledger = Ledger(times, start, began, cloud)

        # The step, and what the run says of itself.
        encoders = training.place(experiment.training_arrays(kept), mesh)
        step_fn = training.make_step(experiment, target, encoders)
        history = metrics.History()
        clock = metrics.Clock(config.train.global_batch_size, experiment.model.flops_per_sample, mesh.size)
        writer = metrics.Writer(workdir, start, config.log.tensorboard)

        def report(step: int) -> None:
            if record := history.collect(step):
                record |= clock.measure(step, config.train.steps - step)
                ledger.ends("steps", step, record["data_wait"])
                writer.write(step, record)
                say(metrics.progress(step, config.train.steps, record))

        def save(step: int) -> None:
            checkpoints.save(step, current, data=loader.state(), meta=meta, frozen=kept)
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
                    batch = sharding.put_batch(rows, mesh)
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
                if done == config.train.steps:
                    ledger.done()
                say(f"stopped by SIGTERM at step {done}, saved" if stop.asked else f"done at step {done}")
                if times:
                    say(summarize(read_attempts(times)))
        except (metrics.NonFiniteLoss, OSError) as error:
            checkpoints.close()
            good = checkpoint.steps(checkpoints.directory)
            where = f"step {good[-1]} in {checkpoints.directory}" if good else "none"
            raise type(error)(f"{error}; last good checkpoint: {where}") from error
        finally:
            loader.close()
            writer.close()
            checkpoints.close()


def make_meta(target: dict, kept: dict, config, data) -> dict:
    return checkpoint.make_meta(target, kept, family=config.model.family, config=as_json(config),
                                statistics=data.statistics, statistics_hash=data.statistics_hash,
                                code_version=code_version(), base=training.base_of(config))


def find_resumable(directory: Path, target: dict, config, data) -> int | None:
    """The newest whole checkpoint, None without one. Raises CheckpointError where it does not fit."""
    there = checkpoint.steps(directory)
    if not there:
        return None
    saved, now = checkpoint.read_json(directory, there[-1], "meta"), make_meta(target, {}, config, data)
    checkpoint.check_resume(saved, now)
    say(f"resuming from step {there[-1]} of {directory}")
    for change in checkpoint.differences(saved["config"], now["config"]):
        say(f"config changed: {change}")
    return there[-1]


def compile_step(step_fn, *args: dict):
    """Compiles ahead of the first call, to tell the time and the memory it takes."""
    began = time.monotonic()
    compiled = step_fn.lower(*args).compile()
    memory = compiled.memory_analysis()
    held, scratch = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
    say(f"compiled in {time.monotonic() - began:.1f} s; per device {held:.0f} MiB of state, encoders and batch, "
        f"{scratch:.0f} MiB of temporaries")
    return compiled


def introduce(config, workdir: Path, mesh, target: dict, start: int) -> None:
    """Writes WORKDIR/config.json and arrays.txt (where every parameter lies), and prints what will run."""
    arrays = sharding.describe(target["params"], state.state_shardings(target["params"]))
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(json.dumps(as_json(config), indent=1) + "\n")
        (workdir / "arrays.txt").write_text(arrays + "\n")
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    total, size, share = arrays.splitlines()[-1].rsplit(maxsplit=2)
    say(f"parameters: {total.strip()}, {size} MiB, {share} MiB per device ({workdir / 'arrays.txt'})\n"
        f"{config.model.family}: dim {config.model.dim}, {config.model.num_layers} layers, "
        f"{config.model.num_heads} heads; steps {start}..{config.train.steps} of "
        f"{config.train.global_batch_size} samples in {config.train.compute_dtype}\n"
        f"mesh {shape} on {mesh.size} x {mesh.devices.flat[0].device_kind}; workdir {workdir}")


def samples_of(rows: dict):
    """What names this host's samples, should the loss of the batch be bad."""
    ids = {name: rows[name] for name in ("dataset_id", "episode_index", "start", "sample_index")}
    return lambda: "; ".join(f"{name} {values.tolist()}" for name, values in ids.items())


def say(text: str) -> None:
    """One process speaks."""
    if jax.process_index() == 0:
        print(text, flush=True)


def run(experiment, workdir: Path | str) -> int:
    """`train` on all hosts, with the expected failures as one sentence and exit code 1."""
    try:
        config = experiment.config
        hosts.join(config.hosts.connect_seconds, config.hosts.heartbeat_seconds)
        hosts.agree(as_json(config), str(workdir), code_version(), config.hosts.connect_seconds)
        train(experiment, workdir)
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
    return 0


def main(argv: list[str]) -> int:
    if argv[1:] or not CONFIG.value or not WORKDIR.value:
        sys.exit(__doc__)
    return run(Experiment(CONFIG.value), WORKDIR.value)


if __name__ == "__main__":
    launch_flags.run(main)
