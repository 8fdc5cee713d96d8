"""Small embedders and patch reshapes that families share."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from world_model.layers.matmul import plain as product
from world_model.layers.norms import layer_norm
from world_model.layers.timestep_rows import TimestepRows
from world_model.layers.transformer import linear


def patchify(x, patch: int):
    """[B, F, h, w, C] -> [B, F * rows * columns, patch * patch * C], inner order (row, column, channel)."""
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    x = x[:, :, :rows * patch, :columns * patch]
    return rearrange(x, "b f (h p) (w q) c -> b (f h w) (p q c)", p=patch, q=patch)


def unpatchify(x, patch: int, frames: int, rows: int, columns: int):
    """Inverse of `patchify`: [B, L, patch * patch * C] -> [B, F, h, w, C]."""
    return rearrange(x, "b (f h w) (p q c) -> b f (h p) (w q) c",
                     f=frames, h=rows, w=columns, p=patch, q=patch)


def time_sinusoid(timestep, width: int):
    """float32 [..., width]: cosines, then sines, of t * 10000^(-i / (width / 2)), for t in 0..1000.

    The published model forms t * f in float64; a float32 product is off by 6e-5 rad at t = 1000. Here the whole
    part of t indexes a table made in float64 and the fraction is added by the angle-sum rule.
    """
    frequency = 10_000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    angles = np.arange(1001)[:, None] * frequency
    whole = jnp.clip(jnp.floor(timestep), 0, 1000).astype(jnp.int32)
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32)[whole], jnp.asarray(np.sin(angles), jnp.float32)[whole]
    rest = (timestep - whole)[..., None] * jnp.asarray(frequency, jnp.float32)
    return jnp.concatenate([cos * jnp.cos(rest) - sin * jnp.sin(rest), sin * jnp.cos(rest) + cos * jnp.sin(rest)], -1)


def time_sinusoid_float32(timestep, width: int):
    """`time_sinusoid` with frequencies and angles in float32, as diffusers' Timesteps forms them: at t = 1000 another
    number by 6e-5 rad, which a network tells apart."""
    angles = timestep[..., None].astype(jnp.float32) * frequencies_float32(width // 2)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def frequencies_float32(count: int) -> np.ndarray:
    """float32 [count]: 10000^(-i / count) with its exponents in float32. Both runtimes take this table: at t = 1000 the
    last bit of a frequency is 3e-5 of a sine."""
    exponents = np.float32(-np.log(1e4)) * np.arange(count, dtype=np.float32) / np.float32(count)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def modulated_norm(x, table, time, rows: TimestepRows):
    """What an output head projects: x [B, L, D], table [2, D] (shift, scale) added to time [B, R, D] before its
    projection."""
    shift, scale = (rows.expand(table[i] + time) for i in (0, 1))
    return layer_norm(x) * (1 + scale) + shift


class ActionEncoder(nnx.Module):
    """fc1 of the action, joined by its timestep's sinusoid; fc2, SiLU, fc3."""

    def __init__(self, action_dim: int, dim: int, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.fc1 = linear(action_dim, dim, rngs, init)
        self.fc2 = linear(2 * dim, dim, rngs, init)
        self.fc3 = linear(dim, dim, rngs, init)

    def __call__(self, actions, timestep):
        """actions [B, N, action_dim], timestep float32 [B, N] -> [B, N, D]. Sine first, in float32, as published."""
        x = self.fc1(actions)
        half = x.shape[-1] // 2
        angles = timestep[..., None].astype(jnp.float32) * jnp.exp(-jnp.log(1e4) / half * jnp.arange(half))
        tau = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(x.dtype)
        return self.fc3(jax.nn.silu(self.fc2(jnp.concatenate([x, tau], axis=-1))))


class ImageEmbedding(nnx.Module):
    """LayerNorm, fc1, erf-GELU, fc2, LayerNorm over image features (Wan's MLPProj); eps 1e-5."""

    def __init__(self, image_dim: int, dim: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(image_dim, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.fc1 = linear(image_dim, image_dim, rngs)
        self.fc2 = linear(image_dim, dim, rngs)
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x):
        """[B, Li, image_dim] -> [B, Li, D].

        The first norm's affine part is folded into fc1: the features are frozen, so no gradient with respect to
        fc1's input is ever formed (1280 x 1280 a token saved of three such products).
        """
        y = x.astype(jnp.float32)
        y = y - y.mean(axis=-1, keepdims=True)
        y = (y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + 1e-5)).astype(x.dtype)
        kernel = self.norm1.scale[:, None] * self.fc1.kernel
        y = product(y, kernel) + (self.norm1.bias @ self.fc1.kernel + self.fc1.bias)
        return self.norm2(self.fc2(jax.nn.gelu(y, approximate=False)))


def ones_if_none(valid, batch: int, count: int):
    """Validity bool [batch, count]: the given one, or True everywhere."""
    return jnp.ones((batch, count), bool) if valid is None else valid
