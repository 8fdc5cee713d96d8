"""What LingBot-VA's forward pass takes: one batch, and its tokens once they are embedded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from world_model.layers.timestep_rows import TimestepRows


class ForwardInputs(NamedTuple):
    """One batch for `LingBotVA.__call__`; N = F n, group f of the actions leads to latent frame f."""

    noisy_latents: jax.Array  # [B, F, h, w, C]
    video_timestep: jax.Array  # float32 [B, F], 0..1000
    clean_latents: jax.Array  # [B, F, h, w, C]; with history noise, not quite clean
    clean_timestep: jax.Array  # float32 [B, F], 0 where clean
    noisy_actions: jax.Array  # [B, N, action_dim]
    action_timestep: jax.Array  # float32 [B, F]
    clean_actions: jax.Array  # [B, N, action_dim]
    text: jax.Array  # [B, text_length, text_dim], rows past the prompt zero and seen
    chunk_frames: jax.Array  # int32, K, 1..max_chunk_frames
    window_blocks: jax.Array  # int32, W: blocks at most this far apart see each other; two blocks a chunk
    frame_valid: jax.Array | None = None  # bool [B, F]
    action_valid: jax.Array | None = None  # bool [B, N]; all False on a video-only clip
    # bool, where it is sampled: video is predicted from its own chunk's actions as well (forward dynamics, Eq. 13).
    forward_dynamics: jax.Array | None = None


class Embedded(NamedTuple):
    """Tokens of one or several groups."""

    x: jax.Array  # [B, L, D]
    time: jax.Array  # [B, R, D], of each timestep row, as heads read it
    modulation: jax.Array  # [B, R, 6, D]
    rows: TimestepRows
    valid: jax.Array | None  # bool [B, L]


def join(parts: list[Embedded]) -> Embedded:
    """The tokens of several parts, one part after another."""
    x, time, modulation, rows, valid = zip(*parts, strict=True)
    x, time, modulation = (jnp.concatenate(arrays, axis=1) for arrays in (x, time, modulation))
    return Embedded(x, time, modulation, TimestepRows(sum((r.parts for r in rows), ())),
                    None if valid[0] is None else jnp.concatenate(valid, axis=1))
