"""Normalisation of activations, in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

EPS = 1e-6


def layer_norm(x):
    """Applies LayerNorm without affine parameters; statistics are float32."""
    return normalised(x.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def normalised(x):
    """Subtracts the mean of x and divides by its standard deviation, along the last axis."""
    return _normalise(x)[0]


def _normalise(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPS)
    return centred * factor, (x, factor)


def _normalise_backward(kept, gradient):
    """Gradient of `normalised`. Both of its sums are known in one pass; the chain rule, step by step, takes three."""
    x, factor = kept
    y = (x - x.mean(axis=-1, keepdims=True)) * factor
    mean = gradient.mean(axis=-1, keepdims=True)
    along = (gradient * y).mean(axis=-1, keepdims=True)
    return factor * (gradient - mean - y * along),


normalised.defvjp(_normalise, _normalise_backward)


class LayerNorm(nnx.Module):
    """LayerNorm with scale and bias, in float32."""

    def __init__(self, dim: int):
        self.scale, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))

    def __call__(self, x):
        return (normalised(x.astype(jnp.float32)) * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS normalisation over the last axis in float32, then scale. For q and k that is D, before the head split."""

    def __init__(self, dim: int, scale: float = 1.0):
        self.scale = nnx.Param(jnp.full(dim, scale))

    def __call__(self, x):
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPS)
        return y.astype(x.dtype) * self.scale[...]
