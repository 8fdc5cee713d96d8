"""LingBot-VA: video first, then the actions that lead to it, over one shared stack of layers (arXiv 2601.21998).

An episode is cut into chunks of K latent frames. A chunk's video is predicted from the clean past; its actions from
that past and the clean copy of the chunk's own video (inverse dynamics). Action group f holds the n actions that lead
to latent frame f; group 0 leads to the first frame and is a dummy. K and the window are sampled anew in every training
step: they are inputs of the forward pass, not part of what is compiled.

This file is the released variant: both modalities go through the same layers, and differ in embedders, time
embedders and output projections.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from world_model.attention import make_attend, tokens, visibility
from world_model.attention.context import get_attend_context
from world_model.attention.tokens import CLEAN_ACTION, CLEAN_VIDEO
from world_model.families.lingbot_va.forward_inputs import Embedded, ForwardInputs, join
from world_model.families.lingbot_va.layout import (
    GROUPS,
    HEADS_READ,
    VIDEO_GROUPS,
    LingBotVASpec,
    Modality,
    make_sequence,
    rotary_table,
)
from world_model.families.wan.spec import PATCH, Velocity
from world_model.layers.embedders import modulated_norm, ones_if_none, patchify, time_sinusoid_float32, unpatchify
from world_model.layers.stack import Cache, Context, Stack
from world_model.layers.timestep_rows import TimestepRows
from world_model.layers.transformer import ForwardPass, Layer, Mlp, linear
from world_model.parallel.axes import LAYER_RULES, Rules


class LingBotVA(Stack):
    """Embedders, stack of layers and heads."""

    param_axes: Rules = (*LAYER_RULES,
        (r"(action_)?time_projection\.kernel", ("embed", "time")),
        (r"(patch_embedding|(action_)?text_embedding\.fc[12]|(action_)?time_embedding\.fc[12]|action_embedding)\.kernel",
         (None, "embed")),
        (r"(video_head|action_head)\.kernel", ("embed", None)),
    )  # fmt: skip

    def __init__(self, spec: LingBotVASpec, *, rngs: nnx.Rngs):
        self.spec, dim = spec, spec.dim
        small = nnx.initializers.normal(0.02)
        time_embedding = functools.partial(Mlp, spec.freq_dim, dim, dim, rngs, activation=jax.nn.silu, init=small)
        self.patch_embedding = linear(PATCH * PATCH * spec.latent_channels, dim, rngs)
        self.action_embedding = linear(spec.action_dim, dim, rngs)
        self.text_embedding = Mlp(spec.text_dim, dim, dim, rngs, init=small)
        self.time_embedding, self.action_time_embedding = time_embedding(), time_embedding()
        self.time_projection, self.action_time_projection = (linear(dim, 6 * dim, rngs) for _ in range(2))
        make_layer = functools.partial(Layer, dim, spec.ffn_dim, spec.num_heads, False, spec.qk_scale)
        self.make_layers(make_layer, spec.num_layers, rngs)
        self.head_modulation = nnx.Param(jax.random.normal(rngs.params(), (2, dim)) * dim**-0.5)
        zeros = nnx.initializers.zeros
        self.video_head = linear(dim, PATCH * PATCH * spec.latent_channels, rngs, init=zeros)
        self.action_head = linear(dim, spec.action_dim, rngs, init=zeros)

    # --- forward over a whole window -------------------------------------------------------------------------

    def __call__(self, inputs: ForwardInputs) -> Velocity:
        """Velocity of every noisy frame and action; tokens on which no output depends are left out."""
        forward, joined = self._forward_pass(inputs, self.training_sequence(inputs))
        return self._velocity(self.run(*forward), joined, inputs)

    def with_hidden(self, inputs: ForwardInputs) -> tuple[Velocity, jax.Array]:
        """(velocity, [L, B, tokens, D] after each layer) with every token in every layer."""
        forward, joined = self._forward_pass(inputs, self.training_sequence(inputs, everything=True))
        x, hidden = self.run_all(*forward)
        return self._velocity(x, joined, inputs), hidden

    def _forward_pass(self, inputs: ForwardInputs, sequence: tokens.Sequence) -> tuple[tuple, Embedded]:
        """What `Stack.run` takes, and the embedded tokens."""
        joined = join([self.embed(group, inputs, sequence) for group in GROUPS])
        read = tokens.select(sequence, lambda s: s.group in HEADS_READ)
        (start, stop), = tokens.token_ranges(sequence, lambda s: s.group in HEADS_READ)
        rows, clean = joined.rows.parts, len(GROUPS) - len(HEADS_READ)
        forward_pass = ForwardPass(
            rows=joined.rows, rotary=jnp.asarray(rotary_table(self.spec, sequence)),
            attend=self.attend(sequence, sequence, inputs), output_rows=TimestepRows(rows[clean:]),
            output_row_start=sum(count for count, _ in rows[:clean]), output_slice=slice(start, stop),
            attend_output=self.attend(read, sequence, inputs), attend_context=get_attend_context(self.spec.attention))
        return (joined.x, joined.modulation, (self.embed_text(inputs.text), None), forward_pass, joined.valid), joined

    def _velocity(self, x, joined: Embedded, inputs: ForwardInputs) -> Velocity:
        """Output tokens [B, noisy video, then noisy actions, D] -> velocities."""
        frames = inputs.noisy_latents.shape[1]
        stop, time = frames * self.spec.tokens_per_frame, joined.time[:, -2 * frames:]
        return Velocity(video=self.read_video(x[:, :stop], time[:, :frames]),
                        action=self.read_actions(x[:, stop:], time[:, frames:]))

    def training_sequence(self, inputs: ForwardInputs, everything: bool = False, order: tuple = GROUPS
                          ) -> tokens.Sequence:
        """The tokens on which outputs depend, or all."""
        sequence = make_sequence(self.spec, inputs.noisy_latents.shape[1], order)
        if everything:
            return sequence
        kept = visibility.needed(self.table(inputs), sequence, set(HEADS_READ))
        return tokens.select(sequence, kept.__contains__)

    def render_mask(self) -> tuple[np.ndarray, dict]:
        """A picture uint8 [n, n, 3] of what the training forward lets see what, at the largest chunk size and without a
        window, and its legend {name: colour}."""
        sequence = make_sequence(self.spec, self.spec.layout.latent_frames)
        largest = tuple(dataclasses.replace(s, blocks=()) for s in sequence)
        return visibility.render(self.spec.table(), largest), visibility.legend(largest)

    def table(self, inputs: ForwardInputs) -> visibility.Table:
        """The table of all that may be visible, whatever is sampled."""
        return self.spec.table(None if inputs.forward_dynamics is None else "lingbot_va_either_dynamics")

    def attend(self, queries: tokens.Sequence, keys: tokens.Sequence, inputs: ForwardInputs):
        """The attend function of `ForwardPass` under the chunk size, window and dynamics of this batch."""
        kernel = make_attend(self.spec.attention, self.table(inputs), queries, keys)

        def mask(name: str | None = None):
            return visibility.sampled_mask(self.spec.table(name), queries, keys, inputs.chunk_frames - 1,
                                         inputs.window_blocks)

        sampled = mask()
        if inputs.forward_dynamics is not None:
            sampled = jnp.where(inputs.forward_dynamics, mask("lingbot_va_forward_dynamics"), sampled)
        return lambda q, k, v, key_valid=None: kernel(q, k, v, key_valid, sampled)

    def embed(self, group: tokens.Group, inputs: ForwardInputs, sequence: tokens.Sequence) -> "Embedded":
        """The tokens of one group, as many as the sequence has."""
        spec, (batch, frames) = self.spec, inputs.video_timestep.shape
        count = sum(s.group is group for s in sequence)
        if group in VIDEO_GROUPS:
            clean = group is CLEAN_VIDEO
            x = self.embed_video(inputs.clean_latents if clean else inputs.noisy_latents)
            time, modulation = self.embed_time(inputs.clean_timestep if clean else inputs.video_timestep)
            valid = inputs.frame_valid
        else:
            clean = group is CLEAN_ACTION
            actions = inputs.clean_actions if clean else inputs.noisy_actions
            x = self.embed_actions(actions[:, :count * spec.actions_per_frame])
            # One row of time serves all clean actions: they are never noised.
            time, modulation = self.embed_action_time(jnp.zeros((batch, 1)) if clean else inputs.action_timestep)
            valid = inputs.action_valid
        rows = time.shape[1]
        if inputs.frame_valid is None and inputs.action_valid is None:
            return Embedded(x, time, modulation, TimestepRows(((rows, x.shape[1] // rows),)), None)
        if group in VIDEO_GROUPS:
            valid = jnp.repeat(ones_if_none(valid, batch, frames), spec.tokens_per_frame, axis=1)
        valid = ones_if_none(valid, batch, x.shape[1])[:, :x.shape[1]]
        return Embedded(x, time, modulation, TimestepRows(((rows, x.shape[1] // rows),)), valid)

    # --- parts -----------------------------------------------------------------------------------------------

    def embed_video(self, latents):
        """[B, F, h, w, C] -> [B, F * tokens_per_frame, D]."""
        return self.patch_embedding(patchify(latents, PATCH).astype(self.dtype))

    def embed_actions(self, actions):
        """[B, N, action_dim] -> [B, N, D]."""
        return self.action_embedding(actions.astype(self.dtype))

    def embed_time(self, timestep):
        """Timesteps of video, float32 [B, R] -> ([B, R, D], modulation [B, R, 6, D])."""
        return self._time(timestep, self.time_embedding, self.time_projection)

    def embed_action_time(self, timestep):
        """`embed_time` for actions, which have their own weights."""
        return self._time(timestep, self.action_time_embedding, self.action_time_projection)

    def _time(self, timestep, embedding, projection):
        time = embedding(time_sinusoid_float32(timestep, self.spec.freq_dim).astype(self.dtype))
        return time, projection(jax.nn.silu(time)).reshape(*time.shape[:2], 6, -1)

    def embed_text(self, text):
        """[B, Lt, text_dim] -> [B, Lt, D]."""
        return self.text_embedding(text.astype(self.dtype))

    def encode_context(self, text) -> Context:
        """Cross-attention's keys and values, for cached passes."""
        return self.context_keys_values((self.embed_text(text), None))

    def run_pass(self, modality: Modality, x, modulation, context: Context, forward_pass: ForwardPass, cache: Cache,
                 cache_valid):
        """`Stack.run_cached` over a chunk's video or its actions."""
        return self.run_cached(x, modulation, context, forward_pass, cache, cache_valid)

    def read_video(self, x, time):
        """[B, F * tokens_per_frame, D], time [B, F, D] -> [B, F, h, w, C]."""
        frames = time.shape[1]
        rows = TimestepRows(((frames, self.spec.tokens_per_frame),))
        x = self.video_head(modulated_norm(x, self.head_modulation[...], time, rows))
        return unpatchify(x, PATCH, frames, *self.spec.grid)

    def read_actions(self, x, time):
        """[B, F * n, D], time [B, F, D] -> [B, F * n, action_dim]."""
        rows = TimestepRows(((time.shape[1], self.spec.actions_per_frame),))
        return self.action_head(modulated_norm(x, self.head_modulation[...], time, rows))
