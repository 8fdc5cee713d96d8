"""DreamZero: video and action denoised together over one stack of layers (arXiv 2602.15922).

14B form: mask and first-frame latents are joined to the video on channels. 5B form: they are not. Both may take
image features of the first frame. Forms of one forward: teacher-forced (clean and noisy copy), without a clean
copy, each with or without actions, and cached block by block.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from world_model.attention import flash, make_attend, packed_order, tokens, visibility
from world_model.attention.context import get_attend_context
from world_model.attention.packing import PackedOrder
from world_model.attention.tokens import CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, STATE
from world_model.attention.visibility import Table
from world_model.families.dreamzero.visibility import TABLES
from world_model.families.wan.spec import PATCH, Velocity, VideoSpec
from world_model.layers import lora, rotary
from world_model.layers.embedders import (
    ActionEncoder,
    ImageEmbedding,
    modulated_norm,
    patchify,
    time_sinusoid,
    unpatchify,
)
from world_model.layers.stack import Stack
from world_model.layers.transformer import ForwardPass, Layer, Linear, Mlp, TimestepRows, linear
from world_model.parallel.axes import LAYER_RULES, WHOLE, Rules

MASK_CHANNELS = 4  # of the first-frame condition: one per raw frame of a latent
HEADS_READ = (NOISY_VIDEO, NOISY_ACTION)
GROUPS = (CLEAN_VIDEO, NOISY_VIDEO, NOISY_ACTION, STATE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamZeroSpec(VideoSpec):
    """Sizes; defaults and units in config.py."""

    tables: ClassVar[Mapping[str, Table]] = TABLES

    concat_first_frame: bool
    image_dim: int
    image_tokens: int
    state_dim: int
    action_hidden_dim: int
    visibility: str = "dreamzero"
    rollout_visibility: str = "dreamzero"
    window_blocks: int = 4
    lora_rank: int = 0
    lora_alpha: float = 4.0
    lora_pattern: str = r"(self|cross)_attn\.[qkvo]$|mlp\.fc[12]$"

    def __post_init__(self):
        super().__post_init__()
        self.table(self.rollout_visibility)

    @property
    def input_channels(self) -> int:
        """Channels that are patchified."""
        extra = MASK_CHANNELS + self.latent_channels if self.concat_first_frame else 0
        return self.latent_channels + extra

    @property
    def window_frames(self) -> int:
        """W, frames that a clean block sees, counted as published; 0 = all."""
        return self.window_blocks * self.layout.frames_per_block + 1 if self.window_blocks else 0


class ForwardInputs(NamedTuple):
    """One batch for `DreamZero.__call__`. None leaves a part out: its tokens then do not exist."""

    noisy_latents: jax.Array  # [B, F, h, w, C]
    video_timestep: jax.Array  # float32 [B, F], 0..1000
    text: jax.Array  # [B, text_length, text_dim], rows past the prompt zero
    clean_latents: jax.Array | None = None  # [B, F, h, w, C]
    condition: jax.Array | None = None  # [B, F, h, w, 4 + C]: mask, first-frame latents
    image: jax.Array | None = None  # [B, image_tokens, image_dim]
    noisy_actions: jax.Array | None = None  # [B, N, action_dim]
    action_timestep: jax.Array | None = None  # float32 [B, N]
    state: jax.Array | None = None  # [B, S, state_dim]
    frame_valid: jax.Array | None = None  # bool [B, F]
    action_valid: jax.Array | None = None  # bool [B, N]; all False on a video-only clip


class DreamZero(Stack):
    """Embedders, stack of layers and heads."""

    param_axes: Rules = (*LAYER_RULES,
        (r"time_projection\.kernel", ("embed", "time")),
        (r"(patch_embedding|text_embedding\.fc[12]|time_embedding\.fc[12]|image_embedding\.fc2|state_encoder\.fc2"
         r"|action_encoder\.fc[123])\.kernel", (None, "embed")),
        (r"image_embedding\.fc1\.kernel", WHOLE),  # 1280 x 1280, whose input needs no gradient
        (r"(head\.proj|action_decoder\.fc1)\.kernel", ("embed", None)),
    )  # fmt: skip

    def __init__(self, spec: DreamZeroSpec, *, rngs: nnx.Rngs):
        self.spec, dim = spec, spec.dim
        small = nnx.initializers.normal(0.02)
        self.patch_embedding = linear(PATCH * PATCH * spec.input_channels, dim, rngs)
        self.text_embedding = Mlp(spec.text_dim, dim, dim, rngs, init=small)
        self.time_embedding = Mlp(spec.freq_dim, dim, dim, rngs, activation=jax.nn.silu, init=small)
        self.time_projection = linear(dim, 6 * dim, rngs)
        if spec.image_dim:
            self.image_embedding = ImageEmbedding(spec.image_dim, dim, rngs)
        relu = functools.partial(Mlp, activation=jax.nn.relu, init=small)
        self.state_encoder = relu(spec.state_dim, spec.action_hidden_dim, dim, rngs)
        self.action_encoder = ActionEncoder(spec.action_dim, dim, rngs)
        self.action_decoder = relu(dim, spec.action_hidden_dim, spec.action_dim, rngs)
        make_layer = functools.partial(Layer, dim, spec.ffn_dim, spec.num_heads, spec.image_dim > 0, spec.qk_scale)
        if spec.lora_rank:
            make_layer = lora.adapted(make_layer, Linear, spec.lora_pattern, spec.lora_rank, spec.lora_alpha)
        self.make_layers(make_layer, spec.num_layers, rngs)
        self.head = Head(dim, PATCH * PATCH * spec.latent_channels, rngs)

    # --- forward over a whole window -------------------------------------------------------------------------

    def __call__(self, inputs: ForwardInputs, *, with_hidden: bool = False, no_clean: str = "dreamzero_no_clean"):
        """Velocity of every noisy frame and action; with_hidden: also [L, B, tokens, D] after each layer.

        no_clean: visibility table where there are no clean latents; "bidirectional" is Wan's own forward.
        Tokens that no output depends on are left out (`visibility.needed`) unless hidden states are asked for.
        """
        spec = self.spec
        table = spec.table(None if inputs.clean_latents is not None else no_clean)
        sequence = self.sequence(inputs.clean_latents is not None, inputs.noisy_actions is not None)
        if not with_hidden:
            kept = visibility.needed(table, sequence, set(HEADS_READ), spec.window_frames)
            sequence = tokens.select(sequence, kept.__contains__)
        x, time, rows, key_valid = self.embed(inputs, sequence)
        context, modulation = self.embed_context(inputs.text, inputs.image), self.modulation(time)
        packed = None if with_hidden else packed_order(spec.attention, sequence)
        if packed is None:
            forward_pass = self.plain_pass(table, sequence, rows)
            run = self.run_all if with_hidden else self.run
            out = run(x, modulation, context, forward_pass, key_valid)
            x, hidden = out if with_hidden else (out, None)
        else:
            forward_pass, last = self.packed_pass(table, packed, rows)
            key_valid = None if key_valid is None else packed.pack(key_valid)
            x = last.unpack(self.run(packed.pack(x), modulation, context, forward_pass, key_valid))
            x = x[:, :tokens.length(_read(sequence))]
        velocity = self.read_heads(x, time[:, forward_pass.output_row_start:], inputs.noisy_actions)
        return (velocity, hidden) if with_hidden else velocity

    def plain_pass(self, table, sequence: tokens.Sequence, rows: TimestepRows) -> ForwardPass:
        """Tokens as they come; the last layer's queries are those that heads read: adjacent, after the clean copy and
        before the states."""
        spec, read, clean = self.spec, _read(sequence), _clean_parts(sequence)
        attend = functools.partial(make_attend, spec.attention, table, keys=sequence, window_frames=spec.window_frames)
        last = clean + (1 if any(s.group is NOISY_ACTION for s in sequence) else 0) + 1
        (start, stop), = tokens.token_ranges(sequence, lambda s: s.group in HEADS_READ)
        return ForwardPass(
            rows=rows, rotary=rotary.constant(self.rotary_angles(sequence)), attend=attend(queries=sequence),
            output_rows=TimestepRows(rows.parts[clean:last]), output_row_start=sum(c for c, _ in rows.parts[:clean]),
            output_slice=slice(start, stop), attend_output=attend(queries=read),
            attend_context=get_attend_context(spec.attention))

    def packed_pass(self, table, packed: PackedOrder, rows: TimestepRows) -> tuple[ForwardPass, PackedOrder]:
        """Tokens in the kernel's packed order; the last layer's queries are all but the clean copy, which stands first.
        Returns also the packed order of those."""
        spec, clean = self.spec, _clean_parts(packed.sequence)
        last = PackedOrder(
            tokens.select(packed.sequence, lambda s: s.group is not CLEAN_VIDEO), packed.tile)
        attend = functools.partial(flash.make_attend_packed, table, keys=packed, window_frames=spec.window_frames)
        angles = np.where(packed.order[:, None] < 0, 0, self.rotary_angles(packed.sequence)[packed.order])
        return ForwardPass(
            rows=TimestepRows(rows.parts, packed.order), rotary=rotary.constant(angles), attend=attend(queries=packed),
            output_rows=TimestepRows(rows.parts[clean:], last.order),
            output_row_start=sum(c for c, _ in rows.parts[:clean]),
            output_slice=slice(len(packed.order) - len(last.order), None), attend_output=attend(queries=last),
            attend_context=get_attend_context(spec.attention)), last

    def sequence(self, with_clean: bool, with_actions: bool) -> tokens.Sequence:
        """All tokens of a window: [clean video] [noisy video] [actions] [states]."""
        blocks = range(self.spec.layout.num_blocks + 1)
        parts = [(CLEAN_VIDEO, blocks)] if with_clean else []
        parts += [(NOISY_VIDEO, blocks)]
        parts += [(NOISY_ACTION, blocks), (STATE, blocks)] if with_actions else []
        return tokens.make_sequence(self.spec.layout, self.spec.tokens_per_frame, parts)

    def render_mask(self) -> tuple[np.ndarray, dict]:
        """A picture uint8 [n, n, 3] of what the training forward lets see what, and its legend {name: colour}."""
        sequence = self.sequence(True, True)
        return visibility.render(self.spec.table(), sequence, self.spec.window_frames), visibility.legend(sequence)

    def embed(self, inputs: ForwardInputs, sequence: tokens.Sequence):
        """Tokens [B, L, D], time embedding of each timestep row [B, R, D], the rows' cover, valid keys [B, L]."""
        batch, spec = inputs.text.shape[0], self.spec
        frames = sum(s.group is CLEAN_VIDEO for s in sequence)
        x, times, parts, valid = [], [], [], []
        if frames:
            x.append(self.embed_video(inputs.clean_latents[:, :frames], _first(inputs.condition, frames)))
            times.append(jnp.zeros((batch, frames)))
            parts.append((frames, spec.tokens_per_frame))
            valid.append(self.token_valid(inputs.frame_valid, batch, frames))
        x.append(self.embed_video(inputs.noisy_latents, inputs.condition))
        times.append(inputs.video_timestep)
        parts.append((spec.layout.latent_frames, spec.tokens_per_frame))
        valid.append(self.token_valid(inputs.frame_valid, batch, spec.layout.latent_frames))
        if inputs.noisy_actions is not None:
            x += self.embed_actions(inputs.noisy_actions, inputs.action_timestep, inputs.state)
            state_every = inputs.noisy_actions.shape[1] // inputs.state.shape[1]
            times += [inputs.action_timestep, inputs.action_timestep[:, ::state_every]]
            parts += [(inputs.noisy_actions.shape[1], 1), (inputs.state.shape[1], 1)]
            action_valid = _ones_if_none(inputs.action_valid, batch, inputs.noisy_actions.shape[1])
            valid += [action_valid, action_valid[:, ::state_every]]
        everything_valid = inputs.frame_valid is None and inputs.action_valid is None
        key_valid = None if everything_valid else jnp.concatenate(valid, axis=1)
        time = self.embed_time(jnp.concatenate(times, axis=1))
        return jnp.concatenate(x, axis=1), time, TimestepRows(tuple(parts)), key_valid

    def token_valid(self, frame_valid, batch: int, frames: int):
        """[B, F] -> [B, frames * tokens_per_frame]."""
        valid = _ones_if_none(frame_valid, batch, frames)[:, :frames]
        return jnp.repeat(valid, self.spec.tokens_per_frame, axis=1)

    def rotary_angles(self, sequence: tokens.Sequence) -> np.ndarray:
        """float64 [L, d/2]. Clean and noisy copies stand at the same positions; actions and states count apart."""
        spec, layout = self.spec, self.spec.layout
        angles = []
        for s in sequence:
            if s.group in (CLEAN_VIDEO, NOISY_VIDEO):
                angles.append(rotary.video_angles(np.array([s.frame]), *spec.grid, spec.head_dim))
            else:
                each = layout.actions_per_block if s.group is NOISY_ACTION else layout.states_per_block
                angles.append(rotary.index_angles((s.block - 1) * each + np.arange(each), spec.head_dim))
        return np.concatenate(angles)

    # --- parts -----------------------------------------------------------------------------------------------

    def embed_video(self, latents, condition):
        """[B, F, h, w, C] (+ condition on channels) -> [B, F * tokens_per_frame, D]."""
        if self.spec.concat_first_frame:
            latents = jnp.concatenate([latents, condition.astype(latents.dtype)], axis=-1)
        return self.patch_embedding(patchify(latents, PATCH).astype(self.dtype))

    def embed_actions(self, actions, timestep, state):
        """[action tokens [B, N, D], state tokens [B, S, D]]."""
        actions, state = actions.astype(self.dtype), state.astype(self.dtype)
        return [self.action_encoder(actions, timestep), self.state_encoder(state)]

    def embed_time(self, timestep):
        """float32 [B, R] -> [B, R, D]."""
        return self.time_embedding(time_sinusoid(timestep, self.spec.freq_dim).astype(self.dtype))

    def modulation(self, time):
        """[B, R, D] -> [B, R, 6, D]: shift, scale, gate of attention, then of the MLP."""
        return self.time_projection(jax.nn.silu(time)).reshape(*time.shape[:2], 6, -1)

    def embed_context(self, text, image):
        """Text [B, Lt, D] and image [B, Li, D] or None."""
        image = self.image_embedding(image.astype(self.dtype)) if self.spec.image_dim else None
        return self.text_embedding(text.astype(self.dtype)), image

    def read_heads(self, x, time, actions) -> Velocity:
        """Output tokens [B, noisy video (+ actions), D] and their time rows -> velocities."""
        frames = x.shape[1] if actions is None else x.shape[1] - actions.shape[1]
        count = frames // self.spec.tokens_per_frame
        rows = TimestepRows(((count, self.spec.tokens_per_frame),))
        video = unpatchify(self.head(x[:, :frames], time[:, :count], rows), PATCH, count, *self.spec.grid)
        return Velocity(video, None if actions is None else self.action_decoder(x[:, frames:]))

    @property
    def dtype(self):
        """Compute dtype: that of the parameters."""
        return self.patch_embedding.kernel.dtype


class Head(nnx.Module):
    """Modulated norm and projection of video tokens; rows of `proj` are ordered (patch row, patch column, channel)."""

    def __init__(self, dim: int, outputs: int, rngs: nnx.Rngs):
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, dim)) * dim**-0.5)
        self.proj = linear(dim, outputs, rngs, init=nnx.initializers.zeros)

    def __call__(self, x, time, rows: TimestepRows):
        """x [B, L, D], time [B, R, D] (before its projection) -> [B, L, outputs]."""
        return self.proj(modulated_norm(x, self.modulation, time, rows))


def _read(sequence: tokens.Sequence) -> tokens.Sequence:
    return tokens.select(sequence, lambda s: s.group in HEADS_READ)


def _clean_parts(sequence: tokens.Sequence) -> int:
    """Parts of `TimestepRows` before those of the noisy copy."""
    return int(any(s.group is CLEAN_VIDEO for s in sequence))


def _first(x, frames: int):
    return None if x is None else x[:, :frames]


def _ones_if_none(valid, batch: int, count: int):
    return jnp.ones((batch, count), bool) if valid is None else valid
