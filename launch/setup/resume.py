"""Going on from a run's newest checkpoint: whether it fits, and what the run should be told that has changed since."""

import math
from collections.abc import Callable
from pathlib import Path

from launch.setup.initial import Initial
from launch.setup.provenance import as_json, code_version
from world_model.training import checkpoint
from world_model.training.optimizer import make_schedule

SCHEDULE = ("learning_rate", "warmup_fraction", "end_fraction")  # keys of config.optimizer


def make_meta(target: dict, kept: dict, config, data, base: dict | None) -> dict:
    """What a checkpoint of this run says of itself; base: of the published weights that it began with."""
    return checkpoint.make_meta(target, kept, family=config.model.family, config=as_json(config),
                                statistics=data.statistics, statistics_hash=data.statistics_hash,
                                code_version=code_version(), base=base)


def find_resumable(directory: Path, target: dict, config, data, say: Callable[[str], None]
                   ) -> tuple[int | None, dict | None]:
    """(step, base) of the newest whole checkpoint; (None, that of train.init_from) without one. The base is what is
    recorded of the published weights that the run began with. Raises CheckpointError where the checkpoint does not fit.
    """
    there = checkpoint.steps(directory)
    if not there:
        initial = Initial.of(config)
        return None, initial.meta.get("base") if initial else None
    saved = checkpoint.read_json(directory, there[-1], "meta")
    now = make_meta(target, {}, config, data, _base(config, saved))
    checkpoint.check_resume(saved, now)
    say(f"resuming from step {there[-1]} of {directory}")
    for change in checkpoint.differences(saved["config"], now["config"]):
        say(f"config changed: {change}")
    if jump := rate_jump(saved["config"], now["config"], there[-1]):
        say(jump)
    return there[-1], now["base"]


def _base(config, saved: dict) -> dict | None:
    """What train.init_from has on record, where that folder is still there; else what the checkpoint has, which holds
    every weight itself."""
    initial = Initial.of(config) if Path(config.train.init_from, "checkpoints").is_dir() else None
    return initial.meta.get("base") if initial else saved.get("base")


def rate_jump(saved: dict, now: dict, step: int) -> str | None:
    """A sentence where the learning rate at a step is another by two configs, as JSON; None where it is the same."""
    before, after = (float(make_schedule(steps=config["train"]["steps"], **{
        key: config["optimizer"][key] for key in SCHEDULE})(step)) for config in (saved, now))
    if math.isclose(before, after, rel_tol=1e-6, abs_tol=1e-30):
        return None
    return (f"the learning rate jumps at step {step} from {before:.4g}, by the checkpoint's {saved['train']['steps']} "
            f"steps, to {after:.4g}, by this config's {now['train']['steps']}")
