"""DreamZero: video and action denoised together over one stack of layers (arXiv 2602.15922).

14B form: mask and first-frame latents are joined to the video on channels. 5B form: they are not. Both may take
image features of the first frame. Forms of one forward: teacher-forced (clean and noisy copy), without a clean
copy, each with or without actions, and cached block by block.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from world_model.attention import packed_order, tokens, visibility
from world_model.attention.tokens import CLEAN_VIDEO
from world_model.attention.visibility import Table
from world_model.families.dreamzero.layout import (
    GROUPS,
    HEADS_READ,
    VIDEO_GROUPS,
    DreamZeroSpec,
    make_sequence,
)
from world_model.families.dreamzero.passes import packed_pass, plain_pass, read_by_heads
from world_model.families.wan.spec import PATCH, Velocity
from world_model.layers import lora
from world_model.layers.embedders import (
    ActionEncoder,
    ImageEmbedding,
    modulated_norm,
    ones_if_none,
    patchify,
    time_sinusoid,
    unpatchify,
)
from world_model.layers.stack import Stack
from world_model.layers.timestep_rows import TimestepRows
from world_model.layers.transformer import Layer, Linear, Mlp, linear
from world_model.parallel.axes import LAYER_RULES, WHOLE, Rules


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
        make_layer: Callable = functools.partial(
            Layer, dim, spec.ffn_dim, spec.num_heads, spec.image_dim > 0, spec.qk_scale)
        if spec.lora_rank:
            make_layer = lora.with_adapters(make_layer, Linear, spec.lora_pattern, spec.lora_rank, spec.lora_alpha)
        self.make_layers(make_layer, spec.num_layers, rngs)
        self.head = Head(dim, PATCH * PATCH * spec.latent_channels, rngs)

    # --- forward over a whole window -------------------------------------------------------------------------

    def __call__(self, inputs: ForwardInputs, *, no_clean: str = "dreamzero_no_clean") -> Velocity:
        """Velocity of every noisy frame and action; tokens on which no output depends are left out.

        no_clean: visibility table where there are no clean latents; "bidirectional" is Wan's own forward.
        """
        spec, table, sequence = self.spec, *self._table_and_tokens(inputs, no_clean)
        kept = visibility.needed(table, sequence, set(HEADS_READ), spec.window_frames)
        sequence = tokens.select(sequence, kept.__contains__)
        x, time, rows, key_valid = self.embed(inputs, sequence)
        context, modulation = self.embed_context(inputs.text, inputs.image), self.modulation(time)
        packed = packed_order(spec.attention, sequence)
        if packed is None:
            forward_pass = plain_pass(spec, table, sequence, rows)
            x = self.run(x, modulation, context, forward_pass, key_valid)
        else:
            forward_pass, last = packed_pass(spec, table, packed, rows)
            key_valid = None if key_valid is None else packed.pack(key_valid)
            x = last.unpack(self.run(packed.pack(x), modulation, context, forward_pass, key_valid))
            x = x[:, :tokens.length(read_by_heads(sequence))]
        return self.read_heads(x, time[:, forward_pass.output_row_start:], inputs.noisy_actions)

    def with_hidden(self, inputs: ForwardInputs) -> tuple[Velocity, jax.Array]:
        """(velocity, [L, B, tokens, D] after each layer) with every token in every layer."""
        table, sequence = self._table_and_tokens(inputs)
        x, time, rows, key_valid = self.embed(inputs, sequence)
        context = self.embed_context(inputs.text, inputs.image)
        forward_pass = plain_pass(self.spec, table, sequence, rows)
        x, hidden = self.run_all(x, self.modulation(time), context, forward_pass, key_valid)
        return self.read_heads(x, time[:, forward_pass.output_row_start:], inputs.noisy_actions), hidden

    def _table_and_tokens(self, inputs: ForwardInputs, no_clean: str = "dreamzero_no_clean"
                          ) -> tuple[Table, tokens.Sequence]:
        """The visibility table and all tokens of these inputs."""
        with_clean, with_actions = inputs.clean_latents is not None, inputs.noisy_actions is not None
        groups = [g for g in GROUPS if (with_clean or g is not CLEAN_VIDEO) and (with_actions or g in VIDEO_GROUPS)]
        return self.spec.table(None if with_clean else no_clean), make_sequence(self.spec, groups)

    def render_mask(self) -> tuple[np.ndarray, dict]:
        """A picture uint8 [n, n, 3] of what the training forward lets see what, and its legend {name: colour}."""
        sequence = make_sequence(self.spec)
        return visibility.render(self.spec.table(), sequence, self.spec.window_frames), visibility.legend(sequence)

    def embed(self, inputs: ForwardInputs, sequence: tokens.Sequence):
        """Tokens [B, L, D], time embedding of each timestep row [B, R, D], the rows' cover, valid keys [B, L]."""
        batch, each = inputs.text.shape[0], self.spec.tokens_per_frame
        x, times, parts, valid = [], [], [], []

        def add_video(latents, condition, timestep=None) -> None:
            frames = latents.shape[1]
            x.append(self.embed_video(latents, condition))
            times.append(jnp.zeros((batch, frames)) if timestep is None else timestep)
            parts.append((frames, each))
            valid.append(jnp.repeat(ones_if_none(inputs.frame_valid, batch, frames)[:, :frames], each, axis=1))

        if frames := sum(s.group is CLEAN_VIDEO for s in sequence):
            add_video(inputs.clean_latents[:, :frames],
                      None if inputs.condition is None else inputs.condition[:, :frames])
        add_video(inputs.noisy_latents, inputs.condition, inputs.video_timestep)
        if inputs.noisy_actions is not None:
            count, states = inputs.noisy_actions.shape[1], inputs.state.shape[1]
            x += self.embed_actions(inputs.noisy_actions, inputs.action_timestep, inputs.state)
            times += [inputs.action_timestep, inputs.action_timestep[:, ::count // states]]
            parts += [(count, 1), (states, 1)]
            action_valid = ones_if_none(inputs.action_valid, batch, count)
            valid += [action_valid, action_valid[:, ::count // states]]
        everything_valid = inputs.frame_valid is None and inputs.action_valid is None
        key_valid = None if everything_valid else jnp.concatenate(valid, axis=1)
        time = self.embed_time(jnp.concatenate(times, axis=1))
        return jnp.concatenate(x, axis=1), time, TimestepRows(tuple(parts)), key_valid

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


class Head(nnx.Module):
    """Modulated norm and projection of video tokens; rows of `proj` are ordered (patch row, patch column, channel)."""

    def __init__(self, dim: int, outputs: int, rngs: nnx.Rngs):
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, dim)) * dim**-0.5)
        self.proj = linear(dim, outputs, rngs, init=nnx.initializers.zeros)

    def __call__(self, x, time, rows: TimestepRows):
        """x [B, L, D], time [B, R, D] (before its projection) -> [B, L, outputs]."""
        return self.proj(modulated_norm(x, self.modulation, time, rows))
