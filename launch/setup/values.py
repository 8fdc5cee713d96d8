"""One check of a config's values, before anything starts: what each key may be, and what no key may be.

Sizes that must fit each other are checked by the objects that are made of them.
"""

import math
import re
from collections.abc import Callable

from world_model.layers.matmul import PRODUCTS
from world_model.parallel.remat import POLICIES
from world_model.training import OPTIMIZERS, SCHEDULES, SINKS, STUDENT_STREAMS

Rule = tuple[Callable[[object], bool], str]  # whether a value may be, and what is expected


class ConfigError(ValueError):
    """Raised where values of a config cannot be meant; the message names every key, and what is expected."""


def between(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
    """A number from low to high; above, below: without that end."""
    words = f"above {low}" if above else f"at least {low}"
    if high < math.inf:
        words += f" and below {high}" if below else f" and at most {high}"
    return lambda x: (x > low if above else x >= low) and (x < high if below else x <= high), words


def one_of(*values: str | bool) -> Rule:
    """One of these."""
    return lambda x: x in values, f"one of {', '.join(map(str, values))}"


COUNT, NOT_NEGATIVE, POSITIVE = between(1), between(0), between(0, above=True)
SHARE, PART = between(0, 1), between(0, 1, below=True)
DTYPE = one_of("float32", "bfloat16")
RULES: dict[str, Rule] = {
    "seed": between(0, 2**63 - 1),
    "model.dim": COUNT, "model.ffn_dim": COUNT, "model.num_heads": COUNT, "model.num_layers": COUNT,
    "layout.height": COUNT, "layout.width": COUNT, "layout.actions_per_block": COUNT,
    "encoders.dtype": DTYPE, "encoders.fit_clips": COUNT,
    "data.size_exponent": between(-math.inf), "data.unit": one_of("windows", "tokens"),
    "data.statistics_per": one_of("dataset", "embodiment"), "data.holdout": PART,
    "train.steps": COUNT, "train.global_batch_size": COUNT, "train.accumulation": COUNT, "train.compute_dtype": DTYPE,
    "train.float32_products": one_of("default", "highest"),
    "train.remat": one_of("auto", "none", *POLICIES), "train.matmul": one_of(*PRODUCTS),
    "train.init_weights": one_of("average", "raw"), "train.log_every": COUNT,
    "optimizer.warmup_fraction": PART, "optimizer.b1": PART, "optimizer.b2": PART, "optimizer.eps": POSITIVE,
    "optimizer.clip_norm": POSITIVE, "optimizer.name": one_of(*OPTIMIZERS),
    "optimizer.schedule": one_of(*SCHEDULES), "optimizer.moments_dtype": DTYPE, "optimizer.frozen_dtype": DTYPE,
    **{f"mesh.{axis}": between(-1) for axis in ("data", "fsdp", "tensor", "context")},
    "hosts.connect_seconds": COUNT, "hosts.heartbeat_seconds": COUNT,
    "checkpoint.every": COUNT, "checkpoint.keep_last": COUNT,
    "distill.streams": one_of(*STUDENT_STREAMS), "distill.levels": between(2),
    "noise.shift": POSITIVE, "noise.action_shift": POSITIVE, "noise.video_alpha": POSITIVE,
    "noise.video_beta": POSITIVE, "noise.history": SHARE, "noise.text_dropout": SHARE, "noise.forward_dynamics": SHARE,
    "checkpoint.keep_best": one_of(False, True),
    "evaluate.windows": COUNT, "evaluate.batch_size": COUNT, "evaluate.solver_steps": COUNT,
    "evaluate.action_steps": COUNT, "evaluate.chunk_frames": COUNT, "evaluate.video_final_sigma": PART,
}

LISTS = {"log.also": SINKS}  # keys whose values are tuples of these
# (key, its default, another key, values of that under which it is not read)
UNREAD_KEYS = (("optimizer.eps", 1e-8, "optimizer.name", ("adafactor", "lion")),
          ("optimizer.b2", 0.999, "optimizer.name", ("adafactor",)),
          ("optimizer.end_fraction", 0.0, "optimizer.schedule", ("constant",)),
          ("optimizer.frozen_dtype", "float32", "optimizer.trainable", (".*",)))


def check(config) -> None:
    """Raises ConfigError naming every key whose value cannot be meant. Numbers without a rule are finite and not
    negative; keys that the config lacks, as an old checkpoint's may, are not missed."""
    flat = dict(_leaves(config.to_dict()))
    problems = [f"{key} = {value!r}: expected {words}"
                for key, value in flat.items() if (words := _expected(key, value))]
    steps, warmup = flat.get("train.steps", 1), flat.get("optimizer.warmup_fraction", 0.0)
    if not problems and round(warmup * steps) >= steps:
        problems.append(f"optimizer.warmup_fraction = {warmup}: expected less, so that one of train.steps = {steps} is "
                        "left after it")
    problems += [f"{key} = {flat[key]}: {other} = {flat[other]!r} does not read it; leave it at {default}"
                 for key, default, other, values in UNREAD_KEYS
                 if flat.get(other) in values and flat.get(key, default) != default]
    if flat.get("checkpoint.keep_best") and (not (every := flat["evaluate.every"]) or flat["checkpoint.every"] % every):
        problems.append(f"checkpoint.keep_best: expected evaluate.every = {every} to divide checkpoint.every = "
                        f"{flat['checkpoint.every']}, so that what is saved has been measured")
    if "distill.streams" in flat and not flat["train.init_from"]:
        problems.append("distill: a student starts from its teacher: let train.init_from name the teacher's workdir")
    if problems:
        raise ConfigError("\n".join(problems))


def _expected(key: str, value) -> str | None:
    """What is expected of a key in place of the value; None where the value may be."""
    if key in ("optimizer.trainable", "optimizer.no_decay"):
        return None if _compiles(value) else "a regular expression"
    if key in LISTS:
        return None if set(value) <= set(LISTS[key]) else f"some of {', '.join(LISTS[key])}"
    number = isinstance(value, int | float)
    if key not in RULES and not number:
        return None
    if number and not math.isfinite(value):
        return "a finite number"
    allowed, words = RULES.get(key, NOT_NEGATIVE)
    return None if allowed(value) else words


def _leaves(values: dict, prefix: str = ""):
    """(dotted key, value) of every leaf but those of the datasets, which are checked where they are opened."""
    for name, value in values.items():
        if isinstance(value, dict) and f"{prefix}{name}" != "data.datasets":
            yield from _leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, dict):
            yield f"{prefix}{name}", value


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
