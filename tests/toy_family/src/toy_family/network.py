"""Two stacks: one looks at patches, prompt and state with grouped keys and values, one denoises actions from that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from toy_family.inputs import Example
from toy_family.spec import ToySpec
from world_model import functional
from world_model.attention.blockwise import dense
from world_model.layers.embedders import patchify, time_sinusoid
from world_model.layers.norms import layer_norm
from world_model.layers.rotary import constant, index_angles
from world_model.layers.stack import scan_layers, stack_layers
from world_model.layers.timestep_rows import TimestepRows
from world_model.layers.transformer import ForwardPass, Layer, Mlp, SelfAttention, linear
from world_model.parallel.axes import LAYER_RULES, layer_shapes


class LookingLayer(nnx.Module):
    """Self-attention with fewer heads of keys and values than of queries, then an MLP."""

    def __init__(self, spec: ToySpec, rngs: nnx.Rngs):
        self.self_attn = SelfAttention(spec.dim, spec.num_heads, 1.0, rngs, kv_heads=spec.kv_heads)
        self.mlp = Mlp(spec.dim, spec.ffn_dim, spec.dim, rngs)

    def __call__(self, x, rotary, valid):
        """x [B, L, D], of which `valid` bool [B, L] may be seen."""
        attn, h = self.self_attn, layer_norm(x)
        x = x + attn.output(dense(attn.queries(h, rotary), *attn.keys_values(h, rotary), valid))
        return x + self.mlp(layer_norm(x))


class Toy(nnx.Module):
    """`look` once at what is seen, then `velocity` at each noise level."""

    param_axes = (*LAYER_RULES,
                  (r"(patch|state|action)_embedding\.kernel|text_embedding", (None, "embed")),
                  (r"time_embedding\.fc[12]\.kernel", ("embed", None)),
                  (r"time_projection\.kernel", ("embed", "time")), (r"head\.kernel", ("embed", None)))

    def __init__(self, spec: ToySpec, rngs: nnx.Rngs):
        self.spec, d = spec, spec.dim
        self.patch_embedding = linear(3 * spec.patch**2, d, rngs)
        self.text_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (257, d)))
        self.state_embedding, self.action_embedding = (linear(n, d, rngs) for n in (spec.state_dim, spec.action_dim))
        self.time_embedding = Mlp(d, d, d, rngs, jax.nn.silu)
        self.time_projection, self.head = linear(d, 6 * d, rngs), linear(d, spec.action_dim, rngs)
        looking = functools.partial(LookingLayer, spec)
        acting = functools.partial(Layer, d, spec.ffn_dim, spec.num_heads, False, 1.0)
        self.looking_blocks, self.acting_blocks = (stack_layers(f, spec.num_layers, rngs) for f in (looking, acting))

    def look(self, seen: Example):
        """(features [B, L, D], which of them exist, bool [B, L])."""
        spec, dtype = self.spec, self.patch_embedding.kernel.dtype
        pixels = (seen.views.astype(jnp.float32) / 127.5 - 1).astype(dtype)
        x = jnp.concatenate([self.patch_embedding(patchify(pixels, spec.patch)), self.text_embedding[...][seen.text_ids],
                             self.state_embedding(seen.state.astype(dtype))], axis=1)
        words = jnp.arange(spec.text_length) < seen.text_length[:, None]
        valid = jnp.concatenate([jnp.repeat(seen.view_mask, spec.frame_tokens // spec.views, axis=1), words,
                                 jnp.ones((len(x), 1), bool)], axis=1)
        rotary = constant(index_angles(np.arange(spec.seen_tokens), spec.head_dim))
        return self._run("looking_blocks", lambda layer, x: layer(x, rotary, valid), x), valid

    def velocity(self, features, valid, actions, timestep):
        """eps - x0 of noisy actions [B, N, action_dim] at a timestep [B], 0..1000."""
        dtype, count = features.dtype, actions.shape[1]
        time = self.time_embedding(time_sinusoid(timestep, self.spec.dim).astype(dtype))
        modulation = self.time_projection(jax.nn.silu(time)).reshape(len(actions), 1, 6, -1)
        rows, rotary = TimestepRows(((1, count),)), constant(index_angles(np.arange(count), self.spec.head_dim))
        one = ForwardPass(rows, rotary, dense, rows, 0, slice(None), dense, functools.partial(dense, key_valid=valid))

        def run(layer, x):
            return layer(x, modulation, layer.context_keys_values((features, None)), one)[0]

        return self.head(layer_norm(self._run("acting_blocks", run, self.action_embedding(actions.astype(dtype)))))

    def _run(self, stack: str, run, x):
        shapes = layer_shapes(functional.shapes(type(self), self.spec), stack)
        return scan_layers(getattr(self, stack), run, x, shapes, self.param_axes, self.spec.remat)
