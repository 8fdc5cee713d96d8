"""LingBot-VA as its paper has it: a Mixture of Transformers (arXiv 2601.21998, section 3 and Fig. 7).

Video and actions have weights of their own, of different widths, and meet in self-attention alone: a narrow layer's
queries, keys and values have the heads of the wide one. Layout, table, noise and rollout are those of the released
variant. The paper tells the action stream's width, not the widths inside it; MLP and cross-attention are scaled with
it here.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from world_model.attention import tokens
from world_model.attention.context import get_attend_context
from world_model.attention.tokens import CLEAN_ACTION, NOISY_ACTION
from world_model.families.lingbot_va.forward_inputs import ForwardInputs, join
from world_model.families.lingbot_va.layout import HEADS_READ, VIDEO_GROUPS, LingBotVASpec, Modality
from world_model.families.lingbot_va.layout import rotary_table as make_rotary
from world_model.families.lingbot_va.model import LingBotVA
from world_model.families.wan.spec import Velocity
from world_model.layers.embedders import modulated_norm
from world_model.layers.stack import Cache, Context
from world_model.layers.timestep_rows import TimestepRows
from world_model.layers.transformer import ATTENTION_SCOPE, ForwardPass, Layer, Mlp, linear

STREAMS = (VIDEO_GROUPS, (CLEAN_ACTION, NOISY_ACTION))  # the order of a sequence
INITIALISATIONS = ("interpolated", "unscaled", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LingBotVAMoTSpec(LingBotVASpec):
    """Sizes; defaults and units in config.py."""

    action_stream_dim: int = 768
    action_ffn_dim: int = 3584
    action_init: str = "interpolated"

    def __post_init__(self):
        super().__post_init__()
        if self.action_stream_dim % self.head_dim:
            raise ValueError(f"model.action_stream_dim = {self.action_stream_dim} is no multiple of the head width "
                             f"{self.head_dim} (model.dim / model.num_heads)")
        if self.action_init not in INITIALISATIONS:
            raise ValueError(f"model.action_init = {self.action_init!r}: expected one of {INITIALISATIONS}")


class Pair(NamedTuple):
    """One of each stream."""

    video: Any
    action: Any


class JointLayer(nnx.Module):
    """Two layers with one self-attention: keys are those of the video, then those of the actions."""

    def __init__(self, video, action, rngs: nnx.Rngs):
        self.video, self.action = video(rngs=rngs), action(rngs=rngs)

    def __call__(self, x: Pair, rows: Pair, context: Pair, streams: Pair, *, key_valid=None, only_output=False):
        """Does what `Layer.__call__` does, with a pair of everything; attend functions are those of streams.video."""
        blocks = Pair(self.video, self.action)
        entered = [block.pre_attention(*each, only_output)
                   for block, *each in zip(blocks, x, rows, streams, strict=True)]
        own, querying = zip(*entered, strict=True)
        keys, values = (jnp.concatenate(both, axis=1) for both in zip(*own, strict=True))
        queries = jnp.concatenate([q.queries for q in querying], axis=1)
        attend = streams.video.attend_output if only_output else streams.video.attend
        with jax.named_scope(ATTENTION_SCOPE):
            attended = attend(queries, keys, values, key_valid)
        attended = jnp.split(attended, [querying[0].queries.shape[1]], axis=1)
        left = (block.post_attention(*each, streams.video.attend_context)
                for block, *each in zip(blocks, querying, attended, context, strict=True))
        return Pair(*left), own

    def context_keys_values(self, context: Pair) -> Pair:
        """Cross-attention's keys and values of each stream's embedded (text, None)."""
        return Pair(self.video.context_keys_values(context.video), self.action.context_keys_values(context.action))


class LingBotVAMoT(LingBotVA):
    """Embedders, two streams and heads."""

    spec: LingBotVAMoTSpec

    def __init__(self, spec: LingBotVAMoTSpec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        narrow, small = spec.action_stream_dim, nnx.initializers.normal(0.02)
        self.action_embedding = linear(spec.action_dim, narrow, rngs)
        self.action_text_embedding = Mlp(spec.text_dim, narrow, narrow, rngs, init=small)
        self.action_time_embedding = Mlp(spec.freq_dim, narrow, narrow, rngs, activation=jax.nn.silu, init=small)
        self.action_time_projection = linear(narrow, 6 * narrow, rngs)
        self.action_head_modulation = nnx.Param(jax.random.normal(rngs.params(), (2, narrow)) * narrow**-0.5)
        self.action_head = linear(narrow, spec.action_dim, rngs, init=nnx.initializers.zeros)
        if spec.action_init != "random":
            for block in (self.blocks, self.final_block):
                copy_stream(block.video, block.action, scaled=spec.action_init == "interpolated")

    def make_layers(self, make_layer, num_layers: int, rngs: nnx.Rngs) -> None:
        """make_layer gives the video's."""
        spec = self.spec
        narrow = functools.partial(Layer, spec.action_stream_dim, spec.action_ffn_dim, spec.num_heads, False,
                                   spec.qk_scale, head_dim=spec.head_dim)
        super().make_layers(functools.partial(JointLayer, make_layer, narrow), num_layers, rngs)

    def __call__(self, inputs: ForwardInputs) -> Velocity:
        """Velocity of every noisy frame and action."""
        order = sum(STREAMS, ())
        sequence = self.training_sequence(inputs, order=order)
        joined = Pair(*(join([self.embed(group, inputs, sequence) for group in groups]) for groups in STREAMS))
        read = tokens.select(sequence, lambda s: s.group in HEADS_READ)
        attends = self.attend(sequence, sequence, inputs), self.attend(read, sequence, inputs)
        streams = Pair(*(self._stream(part, groups, sequence, attends)
                         for part, groups in zip(joined, STREAMS, strict=True)))
        valid = None if joined.video.valid is None else jnp.concatenate([part.valid for part in joined], axis=1)
        x, modulation = (Pair(*(getattr(part, field) for part in joined)) for field in ("x", "modulation"))
        x = self.run(x, modulation, self.embed_context(inputs.text), streams, valid)
        frames = inputs.noisy_latents.shape[1]
        return Velocity(self.read_video(x.video, joined.video.time[:, -frames:]),
                        self.read_actions(x.action, joined.action.time[:, -frames:]))

    def _stream(self, part, groups: tuple, sequence: tokens.Sequence, attends: tuple) -> ForwardPass:
        """A clean group and a noisy one, which is read."""
        own = tokens.select(sequence, lambda s: s.group in groups)
        (start, stop), = tokens.token_ranges(own, lambda s: s.group in HEADS_READ)
        (clean, _), noisy = part.rows.parts
        return ForwardPass(part.rows, jnp.asarray(make_rotary(self.spec, own)), attends[0],
                           TimestepRows((noisy,)), clean, slice(start, stop), attends[1],
                           get_attend_context(self.spec.attention))

    # --- parts -----------------------------------------------------------------------------------------------

    def embed_context(self, text) -> Pair:
        """Each stream's (text, None)."""
        text = text.astype(self.dtype)
        return Pair((self.text_embedding(text), None), (self.action_text_embedding(text), None))

    def read_actions(self, x, time):
        """[B, F * n, narrow], time [B, F, narrow] -> [B, F * n, action_dim]."""
        rows = TimestepRows(((time.shape[1], self.spec.actions_per_frame),))
        return self.action_head(modulated_norm(x, self.action_head_modulation[...], time, rows))

    def encode_context(self, text) -> Context:
        """Cross-attention's keys and values of both streams, for cached passes."""
        return self.context_keys_values(self.embed_context(text))

    def run_pass(self, modality: Modality, x, modulation, context: Context, stream: ForwardPass, cache: Cache,
    cache_valid):
        """One stream over the cache that both write."""
        def part(pair):
            return getattr(pair, modality)

        return self.run_cached(x, modulation, Context(*map(part, context)), stream, cache, cache_valid, part)


def copy_stream(video: Layer, action: Layer, *, scaled: bool) -> None:
    """Sets an action layer (or a stack of them) to its video layer, interpolated along every axis that is narrower.

    scaled: a kernel whose inputs become fewer is multiplied by the root of how many fewer, which keeps the variance of
    its output: sqrt(3072 / 768) = 2. Without it the paper finds training unstable (Fig. 7).
    """
    def flat(layer: nnx.Module) -> dict:
        return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))

    source, state = flat(video), nnx.state(action, nnx.Param)
    copied = {name: interpolate(source[name], target.shape, scaled and name[-1] == "kernel")
              for name, target in flat(action).items()}
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(copied))
    nnx.update(action, state)


def interpolate(x, shape: tuple[int, ...], scaled: bool):
    """Linear interpolation of x to `shape`, sampled at the middles of its cells; scaled: times sqrt of the ratio of
    inputs, the last axis but one."""
    factor = np.sqrt(x.shape[-2] / shape[-2]) if scaled else 1.0
    for axis, (old, new) in enumerate(zip(x.shape, shape, strict=True)):
        if old != new:
            at = (np.arange(new) + 0.5) * old / new - 0.5
            low = np.clip(np.floor(at).astype(int), 0, old - 2)
            weight = jnp.asarray(np.clip(at - low, 0, 1), x.dtype).reshape([-1] + [1] * (x.ndim - 1 - axis))
            x = jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, low + 1, axis) * weight
    return x * factor
