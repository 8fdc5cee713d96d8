"""Runs DreamZero in plain PyTorch: forward over a window, and cached inference block by block.

    runtime, settings = loading.load("export", device="cuda")
    session = runtime.start(text, image)
    session.prefill(first_frame, condition)      # clean latents into the cache, block after block
    out = session.denoise(noisy_latents=..., ...)  # velocities of the next block

`runtime.model.compile()` is torch.compile of all that takes time, as one graph; positions and spans stay outside.
Which token sees which comes from the tables of world_model/attention/visibility.py, as in training. (The released code
departs from its own training there: its cached inference lets state tokens see everything. The table
"dreamzero_state_sees_all" reproduces that.) Latents are channel-last [B, F, h, w, C]; parts have the names of
model.ForwardInputs.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from world_model.attention.tokens import (
    CLEAN_VIDEO,
    NOISY_ACTION,
    NOISY_VIDEO,
    STATE,
    Group,
    Sequence,
    make_sequence,
    select,
    token_ranges,
)
from world_model.attention.visibility import Table, make_spans
from world_model.batch import Layout
from world_model.families.dreamzero.torch.network import DreamZero
from world_model.families.wan.torch_layers import Tokens, join, span_attention
from world_model.layers import rotary

Context = tuple[Tensor, Tensor | None]  # text and image features, embedded


@dataclasses.dataclass(frozen=True)
class Forward:
    """What one pass over a sequence gives."""

    video: Tensor  # velocities [B, F, h, w, C] of the noisy video, or of the clean one where that is all
    action: Tensor | None  # velocities [B, N, action_dim]
    hidden: list[Tensor]  # [B, L, D] after each layer
    sequence: Sequence  # what stands where in L
    keys_values: list[tuple[Tensor, Tensor]]  # per layer, [B, L, n, d] each


class Runtime:
    """A network with the layout, visibility tables and window that go with its weights."""

    def __init__(self, model: DreamZero, layout: Layout, table: Table, rollout_table: Table,
                 window_frames: int = 0):
        self.model, self.layout, self.window_frames = model, layout, window_frames
        self.table, self.rollout_table = table, rollout_table
        self._attention: dict[tuple, Callable] = {}

    def attention(self, table: Table, queries: Sequence, keys: Sequence) -> Callable:
        """Attention of a sequence to keys by a table; a rollout asks for the same few again and again."""
        rules = (tuple(table.items()), queries, keys)
        if rules not in self._attention:
            self._attention[rules] = span_attention(make_spans(table, queries, keys, self.window_frames))
        return self._attention[rules]

    def forward(self, context: Context, *, table: Table | None = None, first_block: int = 0,
                past: "Cache | None" = None, **parts: Tensor | None) -> Forward:
        """One pass over `parts` (see `_embed`), which all begin with the autoregressive block `first_block`.

        table: instead of the runtime's own. past: keys and values of clean blocks before these.
        """
        tokens, sequence = self._embed(first_block, **parts)
        keys, keys_values = sequence, None
        if past is not None:
            keys, keys_values = select(past.sequence + sequence, lambda _: True), past.keys_values  # renumbered
        attention = self.attention(table or self.table, sequence, keys)
        hidden, own, time = self.model(tokens, context, attention, keys_values)
        video, action = self._heads(hidden[-1], time, sequence, **parts)
        return Forward(video, action, hidden, sequence, own)

    def _embed(self, first_block: int, *, clean_latents: Tensor | None = None,
               noisy_latents: Tensor | None = None, video_timestep: Tensor | None = None,
               condition: Tensor | None = None, noisy_actions: Tensor | None = None,
               action_timestep: Tensor | None = None, state: Tensor | None = None) -> tuple[Tokens, Sequence]:
        """The sequence [clean video] [noisy video] [actions] [states], as far as its parts are there."""
        tokens, parts = [], []
        for group, latents, timestep in ((CLEAN_VIDEO, clean_latents, None),
                                         (NOISY_VIDEO, noisy_latents, video_timestep)):
            if latents is not None:
                tokens.append(self._video(latents, condition, timestep, first_block))
                parts.append((group, self._blocks(first_block, latents.shape[1])))
                tokens_per_frame = tokens[-1].x.shape[1] // latents.shape[1]
        if noisy_actions is not None:
            start = max(1, first_block)  # the first frame has no actions
            blocks = range(start, start + noisy_actions.shape[1] // self.layout.actions_per_block)
            tokens += self._actions(noisy_actions, action_timestep, state, start - 1)
            parts += [(NOISY_ACTION, blocks), (STATE, blocks)]
        return join(tokens), make_sequence(self.layout, tokens_per_frame, parts)

    def _blocks(self, first: int, frames: int) -> range:
        """The blocks that `frames` latent frames from block `first` on make up."""
        count, rest = divmod(frames - (first == 0), self.layout.frames_per_block)
        if rest:
            raise ValueError(f"{frames} latent frames from block {first} on are no whole number of blocks "
                             f"of {self.layout.frames_per_block}")
        return range(first, first + (first == 0) + count)

    def _video(self, latents: Tensor, condition: Tensor | None, timestep: Tensor | None,
               first_block: int) -> Tokens:
        batch, frames, height, width, _ = latents.shape
        if timestep is None:  # clean
            timestep = latents.new_zeros(batch, frames)
        if condition is not None:
            latents = torch.cat([latents, condition[:, :frames]], -1)
        first = 0 if first_block == 0 else 1 + (first_block - 1) * self.layout.frames_per_block
        positions = np.arange(first, first + frames)
        angles = rotary.video_angles(positions, height // 2, width // 2, self.model.head_dim)
        return _tokens(self.model.patches(latents), angles, timestep)

    def _actions(self, actions: Tensor, timestep: Tensor, state: Tensor, blocks_before: int) -> list[Tokens]:
        """Tokens of actions and of states, which count their own positions. A state has its first action's timestep."""
        count, states = actions.shape[1], state.shape[1]
        at = blocks_before * self.layout.actions_per_block, blocks_before * self.layout.states_per_block
        angles = [rotary.index_angles(start + np.arange(n), self.model.head_dim)
                  for start, n in zip(at, (count, states), strict=True)]
        return [_tokens(self.model.action_encoder(actions, timestep), angles[0], timestep),
                _tokens(self.model.state_encoder(state), angles[1], timestep[:, ::count // states])]

    def _heads(self, hidden: Tensor, time: Tensor, sequence: Sequence, *, clean_latents: Tensor | None = None,
               noisy_latents: Tensor | None = None, noisy_actions: Tensor | None = None, **_):
        latents, group = (clean_latents, CLEAN_VIDEO) if noisy_latents is None else (
            noisy_latents, NOISY_VIDEO)
        at = _where(sequence, group)
        shape = latents.shape[1], latents.shape[2] // 2, latents.shape[3] // 2
        video = self.model.video(hidden[:, at], time[:, at], shape)
        if noisy_actions is None:
            return video, None
        return video, self.model.action_decoder(hidden[:, _where(sequence, NOISY_ACTION)])

    def start(self, text: Tensor, image: Tensor | None = None, table: Table | None = None) -> "CachedBlocks":
        """Begins a rollout. text features [B, Lt, Dt], zero past the prompt; image features [B, Li, Di]."""
        return CachedBlocks(self, self.model.context(text, image), table or self.rollout_table)


def _tokens(x: Tensor, angles: np.ndarray, timestep: Tensor) -> Tokens:
    """Tokens that share timesteps evenly, in order."""
    rows = torch.arange(timestep.shape[1], device=x.device).repeat_interleave(x.shape[1] // timestep.shape[1])
    return Tokens(x, torch.from_numpy(rotary.table(angles)).to(x.device), timestep, rows)


def _where(sequence: Sequence, group: Group) -> slice:
    (bounds,) = token_ranges(sequence, lambda segment: segment.group is group)
    return slice(*bounds)


@dataclasses.dataclass(frozen=True)
class Cache:
    """Clean tokens that later blocks may see; keys are stored rotated."""

    sequence: Sequence
    keys_values: list[tuple[Tensor, Tensor]]  # per layer, [B, L, n, d] each

    def append(self, new: Forward) -> "Cache":
        """The cache with one more pass behind it."""
        joined = [(torch.cat([k, k_new], 1), torch.cat([v, v_new], 1))
                  for (k, v), (k_new, v_new) in zip(self.keys_values, new.keys_values, strict=True)]
        return Cache(self.sequence + new.sequence, joined)

    def before(self, block: int) -> "Cache":
        """The cache without what belongs to that block or a later one."""
        kept = tuple(segment for segment in self.sequence if segment.block < block)
        count = sum(segment.length for segment in kept)
        return Cache(kept, [(k[:, :count], v[:, :count]) for k, v in self.keys_values])


class CachedBlocks:
    """Cached inference, one autoregressive block after another."""

    def __init__(self, runtime: Runtime, context: Context, table: Table):
        self.runtime, self.context, self.table = runtime, context, table
        self.cache: Cache | None = None
        self.block = 0  # the next one

    def prefill(self, clean_latents: Tensor, condition: Tensor | None = None) -> Forward:
        """Clean latents of whole blocks, first of frame 0 alone; their keys and values go into the cache."""
        out = self._forward(clean_latents=clean_latents, condition=condition)
        self.cache = Cache(out.sequence, out.keys_values) if self.cache is None else self.cache.append(out)
        self.block = out.sequence[-1].block + 1
        return out

    def rewind(self, block: int) -> None:
        """Drops cached blocks so that `block`, 1 or above, is the next one."""
        if block < self.block:
            self.cache, self.block = self.cache.before(block), block

    def denoise(self, **parts: Tensor | None) -> Forward:
        """Velocities of the block that follows the cached ones: noisy parts and `condition` of `_embed`."""
        return self._forward(**parts)

    def _forward(self, **parts) -> Forward:
        return self.runtime.forward(self.context, table=self.table, first_block=self.block, past=self.cache,
                                    **parts)
