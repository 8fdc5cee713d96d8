"""Directions in which an optimizer moves parameters before rate and decay, of flat {name: array} dicts; by optax.

A stack of layers is one array [layers, ...] of which every layer is a parameter of its own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from world_model.parallel import axes, sharding
from world_model.training import OPTIMIZERS

# Last parts of the names of linears' weights and of experts' stacks of them, [..., in, out].
MATRICES = ("kernel", "lora_a", "lora_b", "router", "experts_gate", "experts_fc1", "experts_fc2")
MUON_SIZE = 0.2  # root mean square of muon's direction: AdamW's, so that rates and decay keep their meaning
MATRIX = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)


class DirectionRule(NamedTuple):
    """Functions `init(params) -> opt`, `update(grads, opt, params) -> (directions, opt)`; opt: {"count": int32,
    moment: {name: array}}."""

    init: Callable
    update: Callable


def adamw(b1: float, b2: float, eps: float) -> DirectionRule:
    """Adam's direction."""
    return _of_optax(optax.scale_by_adam(b1, b2, eps), optax.ScaleByAdamState)


def lion(b1: float, b2: float, eps: float) -> DirectionRule:
    """Lion's signs. eps is not read."""
    return _of_optax(optax.scale_by_lion(b1, b2), optax.ScaleByLionState)


def adafactor(b1: float, b2: float, eps: float) -> DirectionRule:
    """Adafactor's: factored second moments, each layer's direction clipped to a root mean square of 1, momentum b1.

    b2 and eps are not read.
    """
    factored = _of_optax(optax.scale_by_factored_rms(), optax.FactoredState)

    def init(params: dict) -> dict:
        return factored.init(params) | ({"mu": jax.tree.map(jnp.zeros_like, params)} if b1 else {})

    def update(grads: dict, opt: dict, params: dict) -> tuple[dict, dict]:
        found, new = factored.update(grads, {name: x for name, x in opt.items() if name != "mu"}, params)
        found = {name: _clipped(name, d) for name, d in found.items()}
        if b1:
            found = new["mu"] = optax.tree.update_moment(found, opt["mu"], b1, 1)
        return found, new

    return DirectionRule(init, update)


def _clipped(name: str, direction: jax.Array) -> jax.Array:
    own = tuple(range(axes.is_stacked(name), direction.ndim))
    return direction / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(direction), own, keepdims=True)))


def muon(b1: float, b2: float, eps: float) -> DirectionRule:
    """Muon's for matrices, with Nesterov momentum b1; Adam's for all else."""
    adam = adamw(b1, b2, eps)
    orthogonal = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=lambda params: dict.fromkeys(
        params, MATRIX))  # it is given the momentum

    def init(params: dict) -> dict:
        return adam.init(split(params)[1]) | {"mu": jax.tree.map(jnp.zeros_like, params)}

    def update(grads: dict, opt: dict, params: dict) -> tuple[dict, dict]:
        (matrices, others), (momentum, mu) = split(grads), split(opt["mu"])
        found, new = adam.update(others, opt | {"mu": mu}, params)
        momentum = optax.tree.update_moment(matrices, momentum, b1, 1)
        ahead = {name: _by_matrix(b1 * m + (1 - b1) * g) for (name, m), g in zip(
            optax.tree.bias_correction(momentum, b1, new["count"] + 1).items(),
            optax.tree.bias_correction(matrices, b1, new["count"]).values())}
        turned, _ = orthogonal.update(ahead, orthogonal.init(ahead))
        scaled = {name: MUON_SIZE * math.sqrt(max(d.shape[-2:])) * d for name, d in turned.items()}
        return found | scaled, new | {"mu": new["mu"] | momentum}

    return DirectionRule(init, update)


def split(tree: dict) -> tuple[dict, dict]:
    """Returns (linears' weights or stacks of them, all else) of a dict by parameter."""
    matrices = {name: x for name, x in tree.items() if name.rpartition(".")[2] in MATRICES}
    return matrices, {name: x for name, x in tree.items() if name not in matrices}


def _by_matrix(x: jax.Array) -> jax.Array:
    """Spreads a stack over devices by whole matrices, [..., in, out]: each moves once, and no device gathers all."""
    return sharding.constrain(x, "matrices", *(None,) * (x.ndim - 1)) if x.ndim > 2 else x


def _of_optax(transform: optax.GradientTransformation, state: Callable) -> DirectionRule:
    def update(grads: dict, opt: dict, params: dict) -> tuple[dict, dict]:
        found, moments = transform.update(grads, state(**opt), params)
        return found, dict(moments._asdict())

    return DirectionRule(lambda params: dict(transform.init(params)._asdict()), update)


RULES: dict[str, Callable[[float, float, float], DirectionRule]] = dict(
    zip(OPTIMIZERS, (adamw, muon, adafactor, lion), strict=True))


def with_moments_dtype(rule: DirectionRule, dtype: str) -> DirectionRule:
    """The rule with moments kept in a dtype, and computed with in float32.

    In bfloat16 they are rounded up or down by chance, with odds that make the mean right: a second moment moves by a
    thousandth of itself in a step, half of what bfloat16 resolves, and rounding to the nearest would never move it. The
    chance depends on the step and the moment's place alone.
    """
    if dtype == "float32":
        return rule

    def init(params: dict) -> dict:
        return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, rule.init(params))

    def update(grads: dict, opt: dict, params: dict) -> tuple[dict, dict]:
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == dtype else x, opt)
        found, new = rule.update(grads, wide, params)
        key = jax.random.fold_in(jax.random.key(0), opt["count"])
        leaves, structure = jax.tree.flatten(new)
        kept = [rounded(x, jax.random.fold_in(key, i)) if x.dtype == jnp.float32 else x for i, x in enumerate(leaves)]
        return found, jax.tree.unflatten(structure, kept)

    return DirectionRule(init, update)


def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds finite float32 to one of the two bfloat16 around it, to the nearer with the greater odds."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
