"""The Euler steps by which LingBot-VA denoises a chunk, each pass ending in a cache write, and settings that training
knows."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.diffusion.flow_matching import noise_levels
from world_model.diffusion.inpainting import inpainting_velocity
from world_model.families.lingbot_va import cached
from world_model.families.lingbot_va.layout import LingBotVASpec

LEVELS = 1000  # training levels, noisiest first
HISTORY_LEVELS = range(500, LEVELS)  # levels of history noise


class EulerPasses(NamedTuple):
    """The passes of an Euler loop, in order: the steps, then one that writes the clean result (change 0)."""

    timesteps: np.ndarray  # float32 [passes]
    changes: np.ndarray  # float32 [passes]: what sigma changes by after each


class GivenFrames(NamedTuple):
    """Frames of a chunk that are given, not denoised."""

    video: jax.Array  # [B, K, h, w, C]
    mask: np.ndarray  # bool [K], where it is given

    @classmethod
    def of(cls, noise, first_latents) -> "GivenFrames":
        """Those of a chunk with that noise: an episode's first frame [B, 1, h, w, C], where it is observed."""
        first, given = np.arange(noise.shape[1]) == 0, first_latents is not None
        return cls(jnp.broadcast_to(first_latents, noise.shape) if given else jnp.zeros_like(noise), first & given)

    def put_into(self, x):
        """The chunk's video with the given frames in their places."""
        return jnp.where(self.mask[:, None, None, None], self.video, x)

    def timesteps(self, time, batch: int):
        """[B, K]: 0 for frames that are given."""
        return jnp.broadcast_to(jnp.where(self.mask, 0, time), (batch, len(self.mask)))


def check_settings(spec: LingBotVASpec, sampler) -> None:
    """Warns of settings of this sampler, or PyTorch's, that training never sampled, which may still be asked for.
    Raises ValueError on those that make no sense."""
    if not 0 <= sampler.executed_steps <= sampler.steps:
        raise ValueError(f"evaluate.executed_steps = {sampler.executed_steps}: expected 0 (all) to solver_steps = "
                         f"{sampler.steps}")
    cached.check_window(sampler.window_blocks)
    _warn("evaluate.chunk_frames", sampler.chunk_frames, 1, spec.max_chunk_frames)
    # Denoising sees one block less than the cache holds.
    _warn("evaluate.window_blocks - 1", sampler.window_blocks - 1, spec.min_window_blocks, spec.max_window_blocks)
    if sampler.executed_steps:
        trained = noise_levels(sampler.shift).sigmas[HISTORY_LEVELS.start]
        sigma = noise_levels(sampler.shift, sampler.steps).sigmas[sampler.executed_steps - 1]
        _warn("noise of partly denoised video", round(float(sigma), 3), 0, round(float(trained), 3))


def levels(steps: int, shift: float, executed: int = 0) -> EulerPasses:
    """The passes of a loop. In a partial denoising (executed > 0) the last step writes the cache at its own level, and
    steps on from there."""
    table = noise_levels(shift, steps)
    times, changes = np.append(table.timesteps, 0), np.append(np.diff(np.append(table.sigmas, 0)), 0)
    passes = executed or steps + 1
    return EulerPasses(times[:passes].astype(np.float32), changes[:passes].astype(np.float32))


def denoise(run_pass, steps: EulerPasses, ring, noise, known: tuple | None):
    """(result, ring) of Euler steps. Every pass writes its block's entry of the ring, which it does not see itself;
    the last pass's keys and values stay.

    run_pass(ring, x, timestep) -> (x with what is given in its place, velocity, ring); known: (value, mask) of what is
    inpainted.
    """
    constant = known and inpainting_velocity(noise, known[0], steps.changes.sum())

    def step(carry, level):
        x, ring = carry
        x, velocity, ring = run_pass(ring, x, level[0])
        if known:
            velocity = jnp.where(known[1], constant, velocity)
        return (x + level[1] * velocity, ring), None

    return jax.lax.scan(step, (noise, ring), tuple(steps))[0]


def _warn(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        warnings.warn(f"{name} = {value} lies outside the trained range {low}..{high}", stacklevel=5)
