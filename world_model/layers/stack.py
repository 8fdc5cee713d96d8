"""The stack of transformer blocks as families run it: whole windows for training, over a cache for rollouts.

The first L - 1 blocks are stacked and scanned, the last stands apart (world_model/layers/transformer.py).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from world_model import functional
from world_model.layers import compiler_hints
from world_model.layers.matmul import get_product
from world_model.layers.transformer import ForwardPass, Linear
from world_model.parallel import axes, remat


class Velocity(NamedTuple):
    """eps - x0 as predicted."""

    video: jax.Array  # [B, F, h, w, C], h and w even
    action: jax.Array | None  # [B, N, action_dim]


class Cache(NamedTuple):
    """Keys and values of tokens that later passes may see."""

    blocks: tuple[jax.Array, jax.Array]  # [L - 1, B, room, n, d] each
    final: tuple[jax.Array, jax.Array]  # [B, room, n, d] each


class Context(NamedTuple):
    """Cross-attention keys and values per block: computed once per prompt and first frame."""

    blocks: tuple  # pairs (keys, values) [L - 1, B, Lc, n, d], text then image
    final: tuple  # the last block's, without the leading axis


class Stack(nnx.Module):
    """What a family inherits: its blocks and the ways to run them. `blocks`, `final_block` are its parameters."""

    def make_layers(self, make_layer: Callable, num_layers: int, rngs: nnx.Rngs) -> None:
        """make_layer(rngs=...) gives one block."""
        make_layer = functools.partial(_multiplying, make_layer, get_product(self.spec.matmul))
        split = nnx.split_rngs(splits=num_layers - 1)
        self.blocks = split(nnx.vmap(lambda r: make_layer(rngs=r)))(rngs)
        self.final_block = make_layer(rngs=rngs)

    def run(self, x, modulation, context, forward_pass: ForwardPass, key_valid):
        """Every block; only the tokens that heads read come back."""
        shapes = axes.block_shapes(functional.shapes(type(self), self.spec))

        samples = compiler_hints.one_by_one((modulation, context, key_valid), self.spec.attention)

        def run(block, x, sample, **how):
            modulation, context, valid = sample
            return block(x, modulation, block.context_keys_values(context), forward_pass, key_valid=valid, **how)[0]

        def step(xs, params):
            block = functional.bind(self.blocks, axes.gathered(params, shapes))
            return [run(block, x, sample) for x, sample in zip(xs, samples, strict=True)], None

        xs, _ = jax.lax.scan(remat.remat(step, self.spec.remat), compiler_hints.one_by_one(x, self.spec.attention),
                             functional.parameters(self.blocks))
        out = [run(self.final_block, x, sample, only_output=True) for x, sample in zip(xs, samples, strict=True)]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *out)

    def run_all(self, x, modulation, context, forward_pass: ForwardPass, key_valid):
        """As `run` with every token in every block: for looking inside. Also [L, B, tokens, D] after each block."""
        graph, stacked = nnx.split(self.blocks)
        hidden = []
        for i in range(self.spec.num_layers):
            last = i == self.spec.num_layers - 1
            block = self.final_block if last else nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], stacked))
            x, _ = block(x, modulation, block.context_keys_values(context), forward_pass, key_valid=key_valid)
            hidden.append(x)
        return x[:, forward_pass.output_slice], jnp.stack(hidden)

    def run_cached(self, x, modulation, context: Context, forward_pass: ForwardPass, cache: Cache, cache_valid,
                   part: Callable = lambda block: block):
        """Every block over [cache, x]: (output tokens or None, this pass's own keys and values).

        cache_valid: bool [room], what of the cache may be seen. part: of a block, where the pass needs only that.
        """
        valid = jnp.concatenate([cache_valid, jnp.ones(x.shape[1], bool)])
        valid = jnp.broadcast_to(valid, (x.shape[0], valid.size))
        graph, stacked = nnx.split(part(self.blocks))

        def step(x, layer):
            params, kv, cached = layer
            return nnx.merge(graph, params)(x, modulation, kv, forward_pass, key_valid=valid, cache=cached)

        x, own = jax.lax.scan(step, x, (stacked, context.blocks, cache.blocks))
        out, final = part(self.final_block)(x, modulation, context.final, forward_pass, key_valid=valid,
                                            cache=cache.final, only_output=True)
        return out, Cache(own, final)

    def context_keys_values(self, context) -> Context:
        """Of embedded (text, image), for `run_cached`."""
        graph, stacked = nnx.split(self.blocks)
        keys_values = lambda params: nnx.merge(graph, params).context_keys_values(context)
        return Context(jax.lax.map(keys_values, stacked), self.final_block.context_keys_values(context))


def _multiplying(make_layer: Callable, product: Callable, *, rngs: nnx.Rngs) -> nnx.Module:
    """A block whose linears multiply by `product`."""
    block = make_layer(rngs=rngs)
    for _, node in nnx.iter_graph(block):
        if isinstance(node, Linear):
            node.product = product
    return block


def make_cache(spec, batch: int, room: int, dtype=jnp.float32) -> Cache:
    """A cache with room for that many tokens, zeros."""
    shape = (batch, room, spec.num_heads, spec.head_dim)
    zeros = lambda *s: jnp.zeros(s, dtype)
    stacked = (spec.num_layers - 1, *shape)
    return Cache((zeros(*stacked), zeros(*stacked)), (zeros(*shape), zeros(*shape)))


def write_cache(cache: Cache, own: Cache, start) -> Cache:
    """The cache with `own` at tokens [start, start + own length)."""
    write = lambda old, new, axis: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=axis)
    return Cache(tuple(write(o, n, 2) for o, n in zip(cache.blocks, own.blocks, strict=True)),
                 tuple(write(o, n, 1) for o, n in zip(cache.final, own.final, strict=True)))
