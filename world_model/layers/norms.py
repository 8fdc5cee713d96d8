"""Normalisation of a block's activations, in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

EPS = 1e-6


def layer_norm(x):
    """LayerNorm without affine parameters, statistics in float32."""
    return normalised(x.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def normalised(x):
    """x less its mean, over its standard deviation, along the last axis."""
    return _normalise(x)[0]


def _normalise(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPS)
    return centred * factor, (x, factor)


def _normalise_back(kept, gradient):
    """Both of its sums are of what is at hand at once: one pass. The chain rule, step by step, takes three."""
    x, factor = kept
    y = (x - x.mean(axis=-1, keepdims=True)) * factor
    mean = gradient.mean(axis=-1, keepdims=True)
    along = (gradient * y).mean(axis=-1, keepdims=True)
    return factor * (gradient - mean - y * along),


normalised.defvjp(_normalise, _normalise_back)


class LayerNorm(nnx.Module):
    """LayerNorm in float32, scale and bias too."""

    def __init__(self, dim: int):
        self.scale, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))

    def __call__(self, x):
        return (normalised(x.astype(jnp.float32)) * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS normalisation in float32, then scale, over the last axis: for q and k the whole D, before the head split."""

    def __init__(self, dim: int, scale: float = 1.0):
        self.scale = nnx.Param(jnp.full(dim, scale))

    def __call__(self, x):
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPS)
        return y.astype(x.dtype) * self.scale[...]
