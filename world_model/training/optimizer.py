"""Optimizers with warm-up, decay and clipping, on flat {name: array} dicts, with a state of plain names.

    adamw      mu, nu              AdamW
    muon       mu, nu              matrices: orthogonalised momentum, scaled to AdamW's size (arXiv 2502.16982); nu and
                                   AdamW for what is no matrix
    adafactor  mu, v_row, v_col, v   with momentum, without scaling by the parameter (arXiv 2106.04560, section 3.4)
    lion       mu                  arXiv 2302.06675

The mathematics is optax's (world_model/training/directions.py); the state is these names with "count" instead of
optax's nested tuples, so that its names on disk do not depend on how a chain is assembled.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from world_model.training import directions

FALL = 0.2  # share of the steps in which "wsd" falls (arXiv 2405.18392, section 4)


class Optimizer(NamedTuple):
    """Functions `init(params) -> opt`, `update(grads, opt, params) -> (params, opt, info)`, `schedule(count) -> rate`.

    info holds the scalars grad_norm (before clipping) and learning_rate. All but the moments is float32.
    """

    init: Callable
    update: Callable
    schedule: Callable


def make_optimizer(
    *, name: str = "adamw", learning_rate: float, steps: int, warmup_fraction: float, end_fraction: float,
    schedule: str = "cosine", b1: float, b2: float, eps: float, weight_decay: float, no_decay: str, clip_norm: float,
    rate_factors: Sequence = (), moments_dtype: str = "float32",
) -> Optimizer:
    """Makes the optimizer from plain values; `no_decay` is a regular expression searched in the parameter's name.

    The rate follows `make_schedule`; rate_factors multiplies it by parameter, as `factors_of` says. Clipping is by the
    global norm of all trained gradients. `init` and `update` raise ValueError where rate_factors does not fit the
    parameters.
    """
    rates = make_schedule(learning_rate, steps, warmup_fraction, end_fraction, schedule)
    rule = directions.with_moments_dtype(directions.RULES[name](b1, b2, eps), moments_dtype)
    clip = optax.clip_by_global_norm(clip_norm)
    undecayed = re.compile(no_decay)

    def init(params: dict) -> dict:
        factors_of(params, rate_factors)
        return rule.init(params)

    def update(grads: dict, opt: dict, params: dict) -> tuple[dict, dict, dict]:
        norm, rate = optax.global_norm(grads), rates(opt["count"])
        factors = factors_of(params, rate_factors)
        grads, _ = clip.update(grads, clip.init(params))
        found, opt = rule.update(grads, opt, params)
        new = {name: p - rate * factors[name] *
               (found[name] + (0.0 if undecayed.search(name) else weight_decay) * p)
               for name, p in params.items()}
        return new, opt, {"grad_norm": norm, "learning_rate": jnp.asarray(rate, jnp.float32)}

    return Optimizer(init, update, rates)


def make_schedule(learning_rate: float, steps: int, warmup_fraction: float, end_fraction: float,
                  schedule: str = "cosine") -> Callable:
    """Makes the function step -> learning rate.

    It rises linearly from 0 at step 0 over warmup_fraction * steps. Then it falls to end_fraction * learning_rate at
    `steps`: by a cosine, or linearly, or (wsd) linearly in the last FALL of the steps; or it stays.
    """
    warm = round(warmup_fraction * steps)
    if schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm, steps, end_fraction * learning_rate)
    end = learning_rate if schedule == "constant" else end_fraction * learning_rate
    fall = max(warm, round((1 - FALL) * steps)) if schedule == "wsd" else warm
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warm), optax.constant_schedule(learning_rate),
         optax.linear_schedule(learning_rate, end, steps - fall)], [warm, fall])


def factors_of(names: Iterable[str], pairs: Sequence) -> dict[str, float]:
    """Returns {name: factor of its learning rate}: that of the first (pattern, factor) pair that matches, else 1.

    Raises ValueError where a pattern matches no name that the pairs before it leave, or a factor is not positive.
    """
    left, found = list(names), {}
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not (isinstance(pair[1], int | float) and pair[1] > 0):
            raise ValueError(f"optimizer.rate_factors: expected pairs of a pattern and a number above 0, found "
                             f"{pair!r}; optimizer.trainable says what is frozen")
        taken = matching("optimizer.rate_factors", pair[0], left)
        found |= dict.fromkeys(taken, float(pair[1]))
        left = [name for name in left if name not in found]
    return dict.fromkeys(left, 1.0) | found


def matching(key: str, pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """Selects the names that a regular expression matches anywhere. Raises ValueError where none does.

    key: the config's, for the error.
    """
    names = tuple(names)
    try:
        found = tuple(name for name in names if re.search(pattern, name))
    except re.error as error:
        raise ValueError(f"{key} = {pattern!r} is no regular expression: {error}") from error
    if not found:
        near = "".join(difflib.get_close_matches(pattern, names, n=1, cutoff=0.0))
        raise ValueError(f"{key} = {pattern!r} matches none of {len(names)} parameters"
                         + (f"; the nearest is {near}" if near else ": the patterns before it took all"))
    return found


def ema_decay_at(decay: float, step: jax.Array) -> jax.Array | float:
    """Returns how much of the average stays at an update, step >= 0 done before it.

    decay: below 1 constant; from 1 on the exponent of a power law, after which step t weighs t ** decay (arXiv
    2312.02696, section 3.1).
    """
    return decay if decay < 1 else (step / (step + 1.0)) ** (decay + 1)


def update_ema(ema: dict, params: dict, decay: jax.Array | float) -> dict:
    """Returns decay * ema + (1 - decay) * params, over the names of `ema`."""
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, {name: params[name] for name in ema})
