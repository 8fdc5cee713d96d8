"""LingBot-VLA: a vision-language model looks, an action expert joined to it in every layer's attention acts.

Version 1: arXiv 2601.18692; version 2: arXiv 2607.06403. Actions are denoised by flow matching; no video is imagined.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from world_model import functional
from world_model.families.lingbot_vla.layers import (
    ExpertLayer,
    LanguageLayer,
    dense_init,
    layer_maker,
    make_stack,
    project,
)
from world_model.families.lingbot_vla.prefix import (
    Tokens,
    prefix_rows,
    prefix_tokens,
    rotary_table,
    suffix_mask,
    suffix_positions,
)
from world_model.families.lingbot_vla.queries import Queries, read_tokens
from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.families.lingbot_vla.vision import VisionTower
from world_model.layers.norms import RMSNorm
from world_model.layers.transformer import linear
from world_model.parallel import axes, remat
from world_model.parallel.axes import LAYER_RULES


class EncodedPrefix(NamedTuple):
    """Keys and values of the prefix in every layer, with what the action expert needs to attend to them."""

    keys: jax.Array  # [layers, B, Lp, kv heads, d], rotated
    values: jax.Array  # likewise
    tokens: Tokens
    outputs: jax.Array | None = None  # [B, view tokens + queries, D], what teachers' heads read (queries.read_tokens)


class LingBotVLA(nnx.Module):
    """`encode_prefix` encodes pictures and text once, `velocity` is asked at each noise level."""

    param_axes = (*LAYER_RULES,
                  (r"self_attn\.qkv\.kernel", ("embed", "heads")), (r"self_attn\.qkv\.bias", ("heads",)),
                  (r"(gamma|beta)\.kernel", ("embed", None)),
                  (r"router", ("embed", None)), (r"experts_(gate|fc1)", (None, "embed", "mlp")),
                  (r"experts_fc2", (None, "mlp", "embed")), (r"shared\.(gate|fc1)\.kernel", ("embed", "mlp")),
                  (r"shared\.fc2\.kernel", ("mlp", "embed")),
                  (r"(patch|token|position)_embedding(\.kernel)?|\w+_seeds", (None, "embed")),
                  (r"(current|future)_projection\.kernel", (None, "embed")),
                  (r"\w+_head\.(latents|context|fc1|q|kv|features)\.kernel", ("embed", None)),
                  (r"\w+_head\.(fc2|o)\.kernel", (None, "embed")),
                  (r"(state|action)_embedding\.kernel", (None, "embed")),
                  (r"time_fc[12]\.kernel|action_head\.kernel", ("embed", None)))

    float32_params = r"mlp\.router"  # rounded, they would choose other experts, and lose a small step of the bias

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        self.spec, wide, narrow = spec, spec.dim, spec.expert_dim
        self.vision = VisionTower(spec, rngs)
        self.token_embedding = nnx.Param(dense_init(rngs.params(), (spec.vocab_size, wide)))
        self.language_blocks = make_stack(spec, "language", LanguageLayer, spec.num_layers - 1, rngs)
        self.language_final_block = layer_maker(spec, "language", LanguageLayer)(rngs=rngs)
        self.language_norm = RMSNorm(wide)  # published; what teachers' heads read is behind it
        if spec.query_tokens:
            self.queries = Queries(spec, rngs)
        if spec.depth_queries and spec.depth_queries_learned:
            self.depth_seeds = nnx.Param(jax.random.normal(rngs.params(), (spec.query_seeds, wide)))
        self.expert_blocks = make_stack(spec, "expert", ExpertLayer, spec.num_layers, rngs)
        self.expert_norm = RMSNorm(narrow)
        self.state_embedding = project(spec.state_dim, narrow, rngs)
        self.action_embedding = project(spec.action_dim, narrow, rngs)
        self.time_fc1, self.time_fc2 = project(2 * narrow, narrow, rngs), project(narrow, narrow, rngs)
        self.action_head = linear(narrow, spec.action_dim, rngs, dense_init)

    def encode_prefix(self, patches, view_mask, text_ids, text_length, with_outputs: bool = False) -> EncodedPrefix:
        """patches [B, V, n, values] (vision.make_patches), view_mask bool [B, V], text_ids int [B, text_length],
        text_length int [B]. Of the last layer, keys and values are all that actions need; the rest is computed for the
        tokens whose outputs are wanted."""
        tokens = prefix_tokens(self.spec, view_mask, text_length)
        x, taps = self.embed_prefix(patches, text_ids, view_mask)
        angles, mask = rotary_table(self.spec, tokens.positions), prefix_rows(self.spec, tokens.valid)
        shapes = self._layer_shapes("language_blocks")

        def run(x, inputs):
            params, index = inputs
            layer = functional.bind(self.language_blocks, axes.gather_weights(params, shapes, self.param_axes))
            x, own = layer(x, angles, mask)
            if len(taps):
                x = x + jnp.where(index < len(taps), taps[jnp.minimum(index, len(taps) - 1)], 0)
            return x, own

        layers = functional.parameters(self.language_blocks), jnp.arange(self.spec.num_layers - 1)
        x, own = jax.lax.scan(remat.remat(run, self.spec.remat), x, layers)
        if with_outputs:
            x, last = self.language_final_block(x, angles, mask, read_tokens(self.spec))
        else:
            last = self.language_final_block.keys_values(x, angles)
        keys, values = (jnp.concatenate([a, b[None]]) for a, b in zip(own, last, strict=True))
        return EncodedPrefix(keys, values, tokens, self.language_norm(x) if with_outputs else None)

    def embed_prefix(self, patches, text_ids, view_mask):
        """(prefix [B, Lp, D], what taps of the vision tower add to it [taps, B, Lp, D])."""
        spec, (batch, views) = self.spec, view_mask.shape
        pictures, taps = self.vision(patches.reshape(-1, *patches.shape[2:]), self._layer_shapes("vision.blocks"),
                                     self.param_axes, spec.grid)
        embed = self.token_embedding[...]
        x, taps = (a.reshape(*a.shape[:-3], batch, views, *a.shape[-2:]) for a in (pictures, taps))
        taps = jnp.where(view_mask[..., None, None], taps, 0)
        if spec.view_markers:
            first, last = (jnp.broadcast_to(embed[i], (batch, views, 1, spec.dim)) for i in spec.view_markers)
            x = jnp.concatenate([first, x, last], axis=2)
            taps = jnp.pad(taps, ((0, 0),) * 3 + ((1, 1), (0, 0)))
        depth = self.depth_queries(batch, x.dtype)
        x = jnp.concatenate([x.reshape(batch, -1, spec.dim), depth, embed[text_ids]], axis=1)
        if spec.query_tokens:
            x = jnp.concatenate([x, jnp.broadcast_to(self.queries(), (batch, spec.queries, spec.dim))], axis=1)
        taps = taps.reshape(*taps.shape[:2], views * taps.shape[-2], spec.dim)
        return x, jnp.pad(taps, ((0, 0), (0, 0), (0, x.shape[1] - taps.shape[2]), (0, 0)))

    def depth_queries(self, batch: int, dtype):
        """[B, V x depth queries, D]: averages of groups of seeds, the same for each view."""
        spec = self.spec
        if not spec.depth_queries:
            return jnp.zeros((batch, 0, spec.dim), dtype)
        seeds = self.depth_seeds[...] if spec.depth_queries_learned else random_seeds(spec)
        queries = seeds.reshape(spec.depth_queries, -1, spec.dim).mean(axis=1).astype(dtype)
        return jnp.broadcast_to(jnp.tile(queries, (spec.views, 1)), (batch, spec.views * len(queries), spec.dim))

    def velocity(self, prefix: EncodedPrefix, state, actions, time):
        """eps - x0 of noisy actions [B, N, action_dim] at times float32 [B], 1 being noise, with state [B, state_dim]:
        ([B, N, action_dim], Routing of every layer or None)."""
        x, condition = self.embed_suffix(state, actions, time)
        count = x.shape[1]
        angles = rotary_table(self.spec, suffix_positions(prefix.tokens, count))
        mask = suffix_mask(self.spec, prefix.tokens.valid, count - 1)
        shapes = self._layer_shapes("expert_blocks")

        def run(x, inputs):
            params, *keys_values = inputs
            layer = functional.bind(self.expert_blocks, axes.gather_weights(params, shapes, self.param_axes))
            return layer(x, condition, angles, keys_values, mask)

        layers = functional.parameters(self.expert_blocks), prefix.keys, prefix.values
        x, routing = jax.lax.scan(remat.remat(run, self.spec.remat), x, layers)
        return self.action_head(self.expert_norm(x[:, 1:])), routing

    def embed_suffix(self, state, actions, time):
        """(tokens of the state and of noisy actions at their time [B, 1 + N, D], the norms' condition [B, D])."""
        dtype = self.state_embedding.kernel.dtype
        condition = time_sinusoid(time, self.spec.expert_dim).astype(dtype)
        x = self.action_embedding(actions.astype(dtype))
        timed = jnp.concatenate([x, jnp.broadcast_to(condition[:, None], x.shape)], axis=-1)
        x = self.time_fc2(jax.nn.silu(self.time_fc1(timed)))
        return jnp.concatenate([self.state_embedding(state.astype(dtype))[:, None], x], axis=1), condition

    def _layer_shapes(self, stack: str) -> dict[str, tuple[int, ...]]:
        return axes.layer_shapes(functional.shapes(LingBotVLA, self.spec), stack)


def random_seeds(spec: LingBotVLASpec) -> np.ndarray:
    """float32 [seeds, D]: those of depth queries that are never learned, the same in every run. The released code draws
    them anew in each process and keeps them nowhere, so that its own cannot be had."""
    return np.random.default_rng(0).standard_normal((spec.query_seeds, spec.dim), np.float32)


def time_frequencies(count: int) -> np.ndarray:
    """float32 [count]: angular frequencies of the time, from 2 pi / 0.004 down to 2 pi / 4, in float32 step by step.

    Angles reach 1571, of which float32 keeps 1e-4: another order of its operations moves velocities by as much.
    """
    one, index = np.float32(1), np.arange(count)
    step = one / np.float32(count - 1)
    fraction = np.where(index < count // 2, step * index.astype(np.float32),
                        one - step * (count - 1 - index).astype(np.float32))  # from both ends, as torch.linspace does
    period = np.float32(0.004) * (1000.0 ** fraction.astype(np.float64)).astype(np.float32)
    return one / period * np.float32(2) * np.float32(np.pi)


def time_sinusoid(time, width: int):
    """float32 [B, width]: sines, then cosines, of times in [0, 1]."""
    angles = jnp.asarray(time_frequencies(width // 2)) * time.astype(jnp.float32)[:, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
