"""Going on from a run's newest checkpoint: whether it fits, and what the run should be told that has changed since."""

import math
from collections.abc import Callable
from pathlib import Path

from data_pipelines.statistics.stored import statistics_hash
from launch.setup.initial import Initial, workdir
from launch.setup.provenance import as_json, code_version
from world_model.differences import differences
from world_model.training import checkpoint
from world_model.training.checkpoint import CheckpointError
from world_model.training.optimizer import make_schedule

SCHEDULE = ("learning_rate", "warmup_fraction", "end_fraction", "schedule")  # keys of config.optimizer
FORMER_DEFAULTS = {"name": "adamw", "moments_dtype": "float32", "frozen_dtype": "float32"}  # before there was a choice


def make_meta(target: dict, kept: dict, config, statistics: dict, base: dict | None) -> dict:
    """What a checkpoint of this run says of itself; base: of the published weights that it began with."""
    return checkpoint.make_meta(target, kept, family=config.model.family, config=as_json(config),
                                statistics=statistics, statistics_hash=statistics_hash(statistics),
                                code_version=code_version(), base=base)


def find_resumable(directory: Path, target: dict, config, data, say: Callable[[str], None]
                   ) -> tuple[int | None, dict | None]:
    """(step, base) of the newest whole checkpoint; (None, that of train.init_from) without one. The base is what is
    recorded of the published weights that the run began with. Raises CheckpointError where the checkpoint does not fit.
    """
    there = checkpoint.steps(directory)
    if not there:
        initial = Initial.from_config(config)
        return None, initial.base if initial else None
    saved = checkpoint.read_json(directory, there[-1], "meta")
    now = make_meta(target, {}, config, data.statistics, _base(config, saved))
    check_optimizer(saved["config"], now["config"])
    checkpoint.check_resume(saved, now)
    say(f"resuming from step {there[-1]} of {directory}")
    for change in differences(saved["config"], now["config"]):
        say(f"config changed: {change}")
    if change := schedule_change(saved["config"], now["config"], there[-1]):
        say(change)
    return there[-1], now["base"]


def _base(config, saved: dict) -> dict | None:
    """What train.init_from has on record, where that folder is still there; else what the checkpoint has, which holds
    every weight itself."""
    initial = Initial.from_config(config) if (workdir(config) / "checkpoints").is_dir() else None
    return initial.base if initial else saved.get("base")


def check_optimizer(saved: dict, now: dict) -> None:
    """Raises CheckpointError where a checkpoint, by two configs as JSON, holds arrays of another optimizer."""
    for key, before in FORMER_DEFAULTS.items():
        theirs, ours = saved.get("optimizer", {}).get(key, before), now["optimizer"].get(key, before)
        if theirs != ours:
            raise CheckpointError(
                f"checkpoint of another optimizer: its arrays are those of optimizer.{key} = {theirs!r}, and this run "
                f"has {ours!r}; go on with {theirs!r}, or start a new workdir from its weights (train.init_from)")


def schedule_change(saved: dict, now: dict, step: int) -> str | None:
    """A sentence where the schedule of the learning rate differs between two configs, as JSON; None where it does not.
    It says whether the rate jumps at a step."""
    before, after = (_schedule(config) for config in (saved, now))
    if before == after:
        return None
    rates = [float(make_schedule(**values)(step)) for values in (before, after)]
    what = ", ".join(f"{'train.steps' if key == 'steps' else f'optimizer.{key}'} {before.get(key)} -> {after[key]}"
                     for key in after if before.get(key) != after[key])
    same = math.isclose(*rates, rel_tol=1e-6, abs_tol=1e-30)
    how = f"goes on from {rates[1]:.4g}" if same else f"jumps from {rates[0]:.4g} to {rates[1]:.4g}"
    end = float(make_schedule(**after)(after["steps"]))
    return f"another schedule ({what}): the learning rate {how} at step {step}, and is {end:.4g} at {after['steps']}"


def _schedule(config: dict) -> dict:
    """What `make_schedule` takes, of a config as JSON."""
    found = {key: config["optimizer"][key] for key in SCHEDULE if key in config["optimizer"]}
    return {"schedule": "cosine"} | found | {"steps": config["train"]["steps"]}
