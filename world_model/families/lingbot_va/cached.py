"""LingBot-VA chunk by chunk over a ring of cached blocks: one pass over a chunk's video, or over its actions.

A chunk's video is block 2 c, its actions are block 2 c + 1. The ring has room for `window_blocks` blocks; block b lives
in entry b mod window_blocks, so that its first pass makes room by dropping block b - window_blocks, and the observed
video and actions of a chunk, when they come, replace what was predicted of it. A pass of block b sees the cached
blocks before b and itself. Shapes are static and the block is traced: two passes compile, for video and for actions.

With nothing dropped this gives the numbers of the training forward on the same tokens. With a full ring, denoising
sees what training sees with a window of window_blocks - 1 (docs/references/lingbot_va.md).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.attention.blockwise import dense
from world_model.families.lingbot_va.layout import LingBotVASpec, Modality
from world_model.families.lingbot_va.model import LingBotVA
from world_model.layers.stack import Cache, Context, make_cache, write_cache
from world_model.layers.timestep_rows import TimestepRows
from world_model.layers.transformer import ForwardPass


class Ring(NamedTuple):
    """Keys and values, chunk after chunk: [video tokens, action tokens] x window_blocks / 2."""

    cache: Cache
    blocks: jax.Array  # int32 [window_blocks]: the block in each entry, -1 where there is none
    filled: jax.Array  # int32 [window_blocks]: its tokens; a last chunk may be short


class Episode(NamedTuple):
    """An episode under way: what its cache holds, and where it is."""

    context: Context
    ring: Ring
    chunk: int = 0  # number of the chunk that is predicted and then observed
    frame: int = 0  # its first latent frame, counted from the episode's start

    def next(self, frames: int) -> "Episode":
        """The episode at its next chunk, after one of `frames` latent frames."""
        return self._replace(chunk=self.chunk + 1, frame=self.frame + frames)


def make_ring(spec: LingBotVASpec, batch: int, chunk_frames: int, window_blocks: int, dtype=jnp.float32) -> Ring:
    """An empty ring. Raises ValueError where the window holds no whole chunk."""
    check_window(window_blocks)
    room = chunk_frames * (spec.tokens_per_frame + spec.actions_per_frame) * window_blocks // 2
    return Ring(make_cache(spec, batch, room, dtype), jnp.full(window_blocks, -1, jnp.int32),
                jnp.zeros(window_blocks, jnp.int32))


def check_window(window_blocks: int) -> None:
    """Raises ValueError where it divides a chunk, or a chunk's video would not see the video before it."""
    if window_blocks < 4 or window_blocks % 2:
        raise ValueError(f"evaluate.window_blocks = {window_blocks}: a chunk is two blocks (video, actions), and a "
                         "prediction has to see the chunk before its own, so the window must be an even number, at "
                         "least 4")


def video_pass(model: LingBotVA, episode: Episode, latents, timestep, rotary, ahead: int = 0):
    """(velocity [B, K, h, w, C], the ring with this pass written) of the video of the episode's chunk.

    latents [B, K, h, w, C]; timestep float32 [B, K], 0 where clean; rotary of `lingbot_va.frame_rotary`. ahead: 1 in
    forward dynamics, where the chunk's actions stand in the ring and are seen. Who only denoises drops the ring: the
    compiler drops the writing.
    """
    time, modulation = model.embed_time(timestep)
    x, ring = _pass(model, Modality.VIDEO, episode, model.embed_video(latents), modulation, rotary, ahead)
    return model.read_video(x, time), ring


def action_pass(model: LingBotVA, episode: Episode, actions, timestep, rotary):
    """(velocity [B, K n, action_dim], ring) of the chunk's actions [B, K n, action_dim]; timestep float32 [B, K]."""
    time, modulation = model.embed_action_time(timestep)
    x, ring = _pass(model, Modality.ACTION, episode, model.embed_actions(actions), modulation, rotary)
    return model.read_actions(x, time), ring


def hide_block(ring: Ring, block) -> Ring:
    """The ring with that block hidden from later passes."""
    return ring._replace(blocks=jnp.where(ring.blocks == block, -1, ring.blocks))


def _pass(model: LingBotVA, modality: Modality, episode: Episode, x, modulation, rotary, ahead: int = 0):
    ring, block = episode.ring, 2 * episode.chunk + (modality is Modality.ACTION)
    rows = TimestepRows(((modulation.shape[1], x.shape[1] // modulation.shape[1]),))
    forward_pass = ForwardPass(rows=rows, rotary=rotary, attend=dense, output_rows=rows, output_row_start=0,
                    output_slice=slice(0, x.shape[1]), attend_output=dense)
    window, entry = ring.blocks.size, block % ring.blocks.size
    starts, lengths = _entries(model.spec, ring)
    seen = (ring.blocks >= 0) & (ring.blocks <= block + ahead) & (ring.blocks > block - window)
    seen &= ring.blocks != block
    entry_of, position = np.repeat(np.arange(window), lengths), np.concatenate([np.arange(n) for n in lengths])
    valid = seen[entry_of] & (position < ring.filled[entry_of])
    x, own = model.run_pass(modality, x, modulation, episode.context, forward_pass, ring.cache, valid)
    return x, Ring(write_cache(ring.cache, own, jnp.asarray(starts)[entry]), ring.blocks.at[entry].set(block),
                   ring.filled.at[entry].set(own.final[0].shape[1]))


def _entries(spec: LingBotVASpec, ring: Ring) -> tuple[np.ndarray, np.ndarray]:
    """First token and number of tokens of every entry."""
    room, window = ring.cache.final[0].shape[1], ring.blocks.size
    frames = 2 * room // window // (spec.tokens_per_frame + spec.actions_per_frame)
    lengths = np.tile([frames * spec.tokens_per_frame, frames * spec.actions_per_frame], window // 2)
    return np.cumsum(lengths) - lengths, lengths


def cached_tokens(spec: LingBotVASpec, ring: Ring) -> tuple[np.ndarray, np.ndarray]:
    """(index of every cached token, its block), oldest block first, for inspection."""
    starts, _ = _entries(spec, ring)
    blocks, filled = np.asarray(ring.blocks), np.asarray(ring.filled)
    entries = [entry for entry in np.argsort(blocks) if blocks[entry] >= 0]
    index = [starts[entry] + np.arange(filled[entry]) for entry in entries]
    return np.concatenate(index), np.repeat(blocks[entries], filled[entries])
