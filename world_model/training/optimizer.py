"""AdamW with warm-up, cosine decay and clipping, on flat {name: array} dicts, with a state of plain names.

The mathematics is optax's; the state is {"count", "mu", "nu"} instead of optax's nested tuples, so that its names on
disk do not depend on how a chain is assembled.
"""

import re
from collections.abc import Callable
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
    eps: float, weight_decay: float, no_decay: str, clip_norm: float,
) -> Optimizer:
    """Makes the optimizer from plain values; `no_decay` is a regular expression searched in the parameter's name.

    The rate rises linearly from 0 at step 0 over warmup_fraction * steps, then falls by a cosine to
    end_fraction * learning_rate at `steps`. Clipping is by the global norm of all trained gradients.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, round(warmup_fraction * steps), steps, end_fraction * learning_rate)
    adam = optax.scale_by_adam(b1, b2, eps)
    clip = optax.clip_by_global_norm(clip_norm)
    undecayed = re.compile(no_decay)

    def init(params: dict) -> dict:
        return dict(adam.init(params)._asdict())

    def update(grads: dict, opt: dict, params: dict) -> tuple[dict, dict, dict]:
        norm, rate = optax.global_norm(grads), schedule(opt["count"])
        grads, _ = clip.update(grads, clip.init(params))
        directions, moments = adam.update(grads, optax.ScaleByAdamState(**opt))
        new = {name: p - rate * (directions[name] + (0.0 if undecayed.search(name) else weight_decay) * p)
               for name, p in params.items()}
        info = {"grad_norm": norm, "learning_rate": jnp.asarray(rate, jnp.float32)}
        return new, dict(moments._asdict()), info

    return Optimizer(init, update, schedule)


def update_ema(ema: dict, params: dict, decay: float) -> dict:
    """Returns decay * ema + (1 - decay) * params, over the names of `ema`."""
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, {name: params[name] for name in ema})
