"""AdamW with warm-up, cosine decay and clipping, on flat {name: array} dicts, with a state of plain names.

The mathematics is optax's; the state is {"count", "mu", "nu"} instead of optax's nested tuples, so that its names on
disk do not depend on how a chain is assembled.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Optimizer(NamedTuple):
    """Functions `init(params) -> opt`, `update(grads, opt, params) -> (params, opt, info)`, `schedule(count) -> rate`.

    info holds the scalars grad_norm (before clipping) and learning_rate. Everything is float32.
    """

    init: Callable
    update: Callable
    schedule: Callable


def make_optimizer(
    *, learning_rate: float, steps: int, warmup_fraction: float, end_fraction: float, b1: float, b2: float,
    eps: float, weight_decay: float, no_decay: str, clip_norm: float, rate_factors: Sequence = (),
) -> Optimizer:
    """Makes the optimizer from plain values; `no_decay` is a regular expression searched in the parameter's name.

    The rate rises linearly from 0 at step 0 over warmup_fraction * steps, then falls by a cosine to
    end_fraction * learning_rate at `steps`; rate_factors multiplies it by parameter, as `factors_of` says. Clipping is
    by the global norm of all trained gradients. `init` and `update` raise ValueError where rate_factors does not fit
    the parameters.
    """
    schedule = make_schedule(learning_rate, steps, warmup_fraction, end_fraction)
    adam = optax.scale_by_adam(b1, b2, eps)
    clip = optax.clip_by_global_norm(clip_norm)
    undecayed = re.compile(no_decay)

    def init(params: dict) -> dict:
        factors_of(params, rate_factors)
        return dict(adam.init(params)._asdict())

    def update(grads: dict, opt: dict, params: dict) -> tuple[dict, dict, dict]:
        norm, rate = optax.global_norm(grads), schedule(opt["count"])
        factors = factors_of(params, rate_factors)
        grads, _ = clip.update(grads, clip.init(params))
        directions, moments = adam.update(grads, optax.ScaleByAdamState(**opt))
        new = {name: p - rate * factors[name] *
               (directions[name] + (0.0 if undecayed.search(name) else weight_decay) * p)
               for name, p in params.items()}
        info = {"grad_norm": norm, "learning_rate": jnp.asarray(rate, jnp.float32)}
        return new, dict(moments._asdict()), info

    return Optimizer(init, update, schedule)


def make_schedule(learning_rate: float, steps: int, warmup_fraction: float, end_fraction: float) -> Callable:
    """Makes the function step -> learning rate; see `make_optimizer`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, round(warmup_fraction * steps), steps, end_fraction * learning_rate)


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


def update_ema(ema: dict, params: dict, decay: float) -> dict:
    """Returns decay * ema + (1 - decay) * params, over the names of `ema`."""
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, {name: params[name] for name in ema})
