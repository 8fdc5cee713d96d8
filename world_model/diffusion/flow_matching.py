"""Flow matching: noise levels, their loss weights, the interpolation and how training samples levels.

    x = (1 - sigma) x0 + sigma eps        target velocity v = eps - x0        timestep = 1000 sigma

sigma = 1 is noise. A level is an integer index into tables of 1000 entries; index 0 is the noisiest. Papers count the
other way, with a data time t that is 1 on clean data. The two meet before the shift:

    t = index / 1000        sigma = shift (1 - t) / (1 + (shift - 1) (1 - t))

The Flash schedule of arXiv 2602.15922, t_video = 1 - Beta(7, 1) (Eq. 5), is therefore `alpha=7, beta=1` here, and its
released code uses `alpha=3, beta=1`: index = 1000 (1 - r) with r ~ Beta(alpha, beta). The mean of t is
beta / (alpha + beta), 0.125 and 0.25. (Algorithm 1 of the paper prints Beta(7, 1) without the "1 -": a slip.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betainc

SCHEDULES = ("coupled", "high_noise", "decoupled")


class NoiseLevels(NamedTuple):
    """Tables over level indices, noisiest first; each is float32 [count]."""

    sigmas: np.ndarray
    timesteps: np.ndarray  # 1000 sigma
    weights: np.ndarray  # loss weights; their mean is 1


def shift_sigma(sigma, shift: float):
    """Moves levels in [0, 1] towards noise: sigma -> shift sigma / (1 + (shift - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def noise_levels(shift: float = 5.0, count: int = 1000) -> NoiseLevels:
    """Makes the training levels: `count` even steps from 1 to above 0, shifted; weights are a bell around t = 500.

    Levels are formed in float32, bit for bit as torch.linspace does: from both ends, each with one rounding. A network
    tells t = 1000 and the 999.99976 of shift 0.05 apart.
    """
    i, step = np.arange(count), np.float64(np.float32(-1 / count))
    even = np.where(i < (count + 1) // 2, 1 + step * i, -step * (count - i)).astype(np.float32)
    sigmas = shift_sigma(even, shift)
    timesteps = 1000 * sigmas
    bell = np.exp(-2 * ((timesteps.astype(np.float64) - 500) / 1000) ** 2)
    above = bell - bell.min()
    weights = above * count / above.sum() if count > 1 else np.ones(1)  # a single level is its own minimum
    return NoiseLevels(*(table.astype(np.float32) for table in (sigmas, timesteps, weights)))


def nearest_level(levels: NoiseLevels, timestep) -> jax.Array:
    """Finds the index of the level with the nearest timestep (the noisier of two as near); int32, timestep's shape."""
    distance = jnp.abs(jnp.asarray(timestep, jnp.float32)[..., None] - levels.timesteps)
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def add_noise(clean: jax.Array, noise: jax.Array, sigma: jax.Array) -> jax.Array:
    """Interpolates data and noise; sigma's shape is the leading part of clean's ([B, F] against [B, F, h, w, C])."""
    sigma = sigma.reshape(sigma.shape + (1,) * (clean.ndim - sigma.ndim))
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: jax.Array, noise: jax.Array) -> jax.Array:
    """The velocity that the model learns to predict, d x / d sigma."""
    return noise - clean


def sample_levels(
    key: jax.Array,
    *,
    num_blocks: int,
    frames_per_block: int,
    actions_per_block: int,
    schedule: str,
    alpha: float,
    beta: float,
    count: int = 1000,
) -> tuple[jax.Array, jax.Array]:
    """Samples the level indices of one example: int32 [F] for latent frames, int32 [N] for actions.

    The first frame has a level of its own and the frames of a block share one. By schedule:
        coupled      uniform; a block's actions have the level of its frames
        high_noise   as coupled, but index = count (1 - r), r ~ Beta(alpha, beta)
        decoupled    video as high_noise, every action token uniform on its own (Flash)
    Raises ValueError on another schedule. For a batch, vmap it over keys.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"noise.schedule = {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    video_key, action_key = jax.random.split(key)
    if schedule == "coupled":
        groups = jax.random.randint(video_key, (1 + num_blocks,), 0, count)
    else:
        groups = _beta_levels(video_key, (1 + num_blocks,), alpha, beta, count)
    blocks = groups[1:]
    video = jnp.concatenate([groups[:1], jnp.repeat(blocks, frames_per_block)])
    if schedule == "decoupled":
        action = jax.random.randint(action_key, (num_blocks * actions_per_block,), 0, count)
    else:
        action = jnp.repeat(blocks, actions_per_block)
    return video, action


def _beta_levels(key: jax.Array, shape: tuple, alpha: float, beta: float, count: int) -> jax.Array:
    """Samples int32 of `shape`, floor(count (1 - r)) with r ~ Beta(alpha, beta), by the inverse distribution function.

    The table P(index < k) is exact and compiles in no time; `jax.random.beta` takes seconds.
    """
    below = betainc(beta, alpha, np.arange(1, count) / count).astype(np.float32)
    return jnp.searchsorted(below, jax.random.uniform(key, shape), side="right").astype(jnp.int32)
