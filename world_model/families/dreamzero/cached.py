"""DreamZero block by block with cached keys and values: `prefill` writes clean video, `denoise` reads it.

Both follow the family's visibility table, so that a cached rollout gives the same numbers as the training forward
on the same tokens. Shapes are static and the block's index is traced: each function compiles once (prefill twice,
for the single first frame and for a block).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from world_model.attention import make_attend, tokens
from world_model.attention.tokens import CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, STATE, Group
from world_model.attention.visibility import in_window
from world_model.families.dreamzero.layout import HEADS_READ, DreamZeroSpec
from world_model.families.dreamzero.model import DreamZero
from world_model.families.wan.spec import Velocity
from world_model.layers import rotary
from world_model.layers.stack import Cache, Context, make_cache, write_cache
from world_model.layers.timestep_rows import TimestepRows
from world_model.layers.transformer import ForwardPass


def room_frames(spec: DreamZeroSpec) -> int:
    """Latent frames that the cache holds: all that the last block may see."""
    return spec.layout.latent_frames - spec.layout.frames_per_block


def empty_cache(spec: DreamZeroSpec, batch: int, dtype=jnp.float32) -> Cache:
    """A cache with nothing in it. What is valid is known from the block's index, so nothing else is stored."""
    return make_cache(spec, batch, room_frames(spec) * spec.tokens_per_frame, dtype)


def encode_context(model: DreamZero, text, image) -> Context:
    """Keys and values of text [B, Lt, text_dim] and image [B, Li, image_dim] or None."""
    return model.context_keys_values(model.embed_context(text, image))


def prefill(model: DreamZero, cache: Cache, context: Context, latents, condition, block) -> Cache:
    """Writes the clean frames of `block` (int, traced or not). latents [B, 1 or frames_per_block, h, w, C]."""
    spec, frames = model.spec, latents.shape[1]
    first = first_frame(spec, block)
    own = _own(spec, [CLEAN_VIDEO], frames)
    time = model.embed_time(jnp.zeros((latents.shape[0], 1)))
    x = model.embed_video(latents, condition)
    rows = TimestepRows(((1, x.shape[1]),))
    forward_pass = _forward_pass(model, own, rows, _video_rotary(spec, first, frames), reading=False)
    valid = _cache_valid(spec, CLEAN_VIDEO, first, first + frames)
    _, new = model.run_cached(x, model.modulation(time), context, forward_pass, cache, valid)
    return write_cache(cache, new, first * spec.tokens_per_frame)


class Noisy(NamedTuple):
    """One block to denoise."""

    latents: jax.Array  # [B, frames_per_block, h, w, C]
    video_timestep: jax.Array  # float32 [B, frames_per_block]
    actions: jax.Array | None  # [B, actions_per_block, action_dim]; these three None: video alone
    action_timestep: jax.Array | None  # float32 [B, actions_per_block]
    state: jax.Array | None  # [B, states_per_block, state_dim]


def denoise(model: DreamZero, cache: Cache, context: Context, noisy: Noisy, condition, block) -> Velocity:
    """Velocity of one block's video and actions given the cached clean video before it. block >= 1."""
    spec, frames = model.spec, noisy.latents.shape[1]
    first = first_frame(spec, block)
    groups, x = [NOISY_VIDEO], [model.embed_video(noisy.latents, condition)]
    rows, times = [(frames, spec.tokens_per_frame)], [noisy.video_timestep]
    table = [_video_rotary(spec, first, frames)]
    if noisy.actions is not None:
        count_a, count_s = noisy.actions.shape[1], noisy.state.shape[1]
        groups += [NOISY_ACTION, STATE]
        x += model.embed_actions(noisy.actions, noisy.action_timestep, noisy.state)
        rows += [(count_a, 1), (count_s, 1)]
        times += [noisy.action_timestep, noisy.action_timestep[:, ::count_a // count_s]]
        table += [_index_rotary(spec, (block - 1) * count, count) for count in (count_a, count_s)]
    time = model.embed_time(jnp.concatenate(times, axis=1))
    own, angles = _own(spec, groups, frames), jnp.concatenate(table, axis=1)
    forward_pass = _forward_pass(model, own, TimestepRows(tuple(rows)), angles, reading=True)
    valid = _cache_valid(spec, NOISY_VIDEO, first, first + frames)
    x, _ = model.run_cached(jnp.concatenate(x, axis=1), model.modulation(time), context, forward_pass, cache, valid)
    return model.read_heads(x, time, noisy.actions)


def first_frame(spec: DreamZeroSpec, block):
    """First latent frame of a block."""
    return jnp.where(block == 0, 0, 1 + (block - 1) * spec.layout.frames_per_block)


def _own(spec: DreamZeroSpec, groups: list[Group], frames: int) -> tokens.Sequence:
    """Segments of the block at hand, labelled as the last block, so that every cached block is an earlier one."""
    block = spec.layout.num_blocks
    sequence = tokens.make_sequence(spec.layout, spec.tokens_per_frame, [(g, range(block, block + 1)) for g in groups])
    video = [s for s in sequence if s.group is groups[0]]
    return tokens.select(sequence, lambda s: s not in video[frames:])


def _forward_pass(model: DreamZero, own, rows: TimestepRows, table, *, reading: bool) -> ForwardPass:
    spec = model.spec
    cached = tokens.make_sequence(spec.layout, spec.tokens_per_frame,
                                  [(CLEAN_VIDEO, range(spec.layout.num_blocks))])
    offset = tokens.length(cached)
    keys = cached + tuple(dataclasses.replace(s, start=s.start + offset) for s in own)
    visible = spec.table(spec.rollout_visibility)

    def attend(queries: tokens.Sequence):
        return make_attend(spec.attention, visible, queries, keys)

    if not reading:
        return ForwardPass(rows, table, attend(own), None, 0, slice(0, 0), None)
    read = tokens.select(own, lambda s: s.group in HEADS_READ)
    output_rows = TimestepRows(rows.parts[:2])
    return ForwardPass(rows, table, attend(own), output_rows, 0, slice(0, tokens.length(read)), attend(read))


def _cache_valid(spec: DreamZeroSpec, query: Group, first, end):
    """bool [room]: frames before the block of frames first..end that its `query` tokens see. Actions and states see
    what the video beside them does, or nothing of the cache."""
    frame, rule = jnp.arange(room_frames(spec)), spec.table(spec.rollout_visibility)[query, CLEAN_VIDEO]
    seen = (frame < first) & in_window(rule, frame, end, spec.window_frames)
    return jnp.repeat(seen, spec.tokens_per_frame)


def _video_rotary(spec: DreamZeroSpec, first, frames: int):
    angles = rotary.video_angles(np.arange(spec.layout.latent_frames), *spec.grid, spec.head_dim)
    return jax.lax.dynamic_slice_in_dim(rotary.constant(angles), first * spec.tokens_per_frame,
                                        frames * spec.tokens_per_frame, axis=1)


def _index_rotary(spec: DreamZeroSpec, first, count: int):
    angles = rotary.index_angles(np.arange(count * spec.layout.num_blocks), spec.head_dim)
    return jax.lax.dynamic_slice_in_dim(rotary.constant(angles), first, count, axis=1)
