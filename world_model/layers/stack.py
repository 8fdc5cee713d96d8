"""Stacks of layers as families run them: whole windows for training, over a cache for rollouts.

The first L - 1 layers are stacked and scanned, the last stands apart (world_model/layers/transformer.py).
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


class Cache(NamedTuple):
    """Keys and values of tokens that later passes may see."""

    layers: tuple[jax.Array, jax.Array]  # [L - 1, B, room, n, d] each
    final: tuple[jax.Array, jax.Array]  # the last layer's, [B, room, n, d] each


class Context(NamedTuple):
    """Cross-attention keys and values of every layer: computed once per prompt and first frame."""

    layers: tuple  # pairs (keys, values) [L - 1, B, Lc, n, d], text then image
    final: tuple  # the last layer's, without the leading axis


def stack_layers(make_layer: Callable, count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` layers as one module whose parameters have a leading axis of layers; make_layer(rngs=...) gives one."""
    split = nnx.split_rngs(splits=count)
    return split(nnx.vmap(lambda r: make_layer(rngs=r)))(rngs)


def scan_layers(layers: nnx.Module, run: Callable, x, shapes: dict[str, tuple[int, ...]], rules: axes.Rules,
                policy: str):
    """x after run(layer, x) of every stacked layer, one after another, each layer's weights gathered for its turn.

    shapes: those of one layer's whole weights, by name; policy: what the backward pass keeps (parallel/remat.py).
    """
    def step(x, params):
        return run(functional.bind(layers, axes.gather_weights(params, shapes, rules)), x), None

    return jax.lax.scan(remat.remat(step, policy), x, functional.parameters(layers))[0]


class Stack(nnx.Module):
    """What families on Wan's backbone inherit: a stack whose last layer stands apart, and the ways to run it.

    `blocks` and `final_block` are its parameters' names, `patch_embedding` that of the video's embedder; `param_axes`
    has the family's sharding rules.
    """

    param_axes: axes.Rules = axes.LAYER_RULES

    @property
    def dtype(self):
        """The dtype that is computed in: that of the parameters."""
        return self.patch_embedding.kernel.dtype

    def make_layers(self, make_layer: Callable, num_layers: int, rngs: nnx.Rngs) -> None:
        """make_layer(rngs=...) gives one layer."""
        make_layer = functools.partial(with_product, make_layer, self.spec.matmul)
        self.blocks = stack_layers(make_layer, num_layers - 1, rngs)
        self.final_block = make_layer(rngs=rngs)

    def run(self, x, modulation, context, forward_pass, key_valid):
        """x after every layer; only the tokens that heads read come back. forward_pass: what a layer takes for one."""
        shapes = axes.layer_shapes(functional.shapes(type(self), self.spec))
        samples = compiler_hints.one_by_one((modulation, context, key_valid), self.spec.attention)

        def run_each(layer, xs, **how):
            return [layer(x, modulation, layer.context_keys_values(context), forward_pass, key_valid=valid, **how)[0]
                    for x, (modulation, context, valid) in zip(xs, samples, strict=True)]

        xs = scan_layers(self.blocks, run_each, compiler_hints.one_by_one(x, self.spec.attention), shapes,
                         self.param_axes, self.spec.remat)
        out = run_each(self.final_block, xs, only_output=True)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *out)

    def run_all(self, x, modulation, context, forward_pass: ForwardPass, key_valid):
        """`run` with every token in every layer, for looking inside.

        Returns also [L, B, tokens, D] after each layer.
        """
        graph, stacked = nnx.split(self.blocks)
        hidden = []
        for i in range(self.spec.num_layers):
            last = i == self.spec.num_layers - 1
            layer = self.final_block if last else nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], stacked))
            x, _ = layer(x, modulation, layer.context_keys_values(context), forward_pass, key_valid=key_valid)
            hidden.append(x)
        return x[:, forward_pass.output_slice], jnp.stack(hidden)

    def run_cached(self, x, modulation, context: Context, forward_pass: ForwardPass, cache: Cache, cache_valid,
                   part: Callable = lambda layer: layer):
        """Runs every layer over [cache, x]: (output tokens or None, this pass's own keys and values).

        cache_valid: bool [room], which entries of the cache may be seen. part: the part of a layer that runs.
        """
        valid = jnp.concatenate([cache_valid, jnp.ones(x.shape[1], bool)])
        valid = jnp.broadcast_to(valid, (x.shape[0], valid.size))
        graph, stacked = nnx.split(part(self.blocks))

        def step(x, inputs):
            params, kv, cached = inputs
            return nnx.merge(graph, params)(x, modulation, kv, forward_pass, key_valid=valid, cache=cached)

        x, own = jax.lax.scan(step, x, (stacked, context.layers, cache.layers))
        out, final = part(self.final_block)(x, modulation, context.final, forward_pass, key_valid=valid,
                                            cache=cache.final, only_output=True)
        return out, Cache(own, final)

    def context_keys_values(self, context) -> Context:
        """Cross-attention's keys and values of embedded (text, image), for `run_cached`."""
        graph, stacked = nnx.split(self.blocks)

        def keys_values(params):
            return nnx.merge(graph, params).context_keys_values(context)

        return Context(jax.lax.map(keys_values, stacked), self.final_block.context_keys_values(context))


def with_product(make_layer: Callable, product_name: str, *, rngs: nnx.Rngs) -> nnx.Module:
    """A layer whose linears multiply by the product of that name (world_model/layers/matmul.py)."""
    layer, product = make_layer(rngs=rngs), get_product(product_name)
    for _, node in nnx.iter_graph(layer):
        if isinstance(node, Linear):
            node.product = product
    return layer


def make_cache(spec, batch: int, room: int, dtype=jnp.float32) -> Cache:
    """A cache with room for that many tokens, all zeros; each array has memory of its own, which may be donated."""
    shape = (batch, room, spec.num_heads, spec.head_dim)
    return Cache(*(tuple(jnp.zeros(of_part, dtype) for _ in range(2))
                   for of_part in ((spec.num_layers - 1, *shape), shape)))


def write_cache(cache: Cache, own: Cache, start) -> Cache:
    """The cache with `own` at tokens [start, start + own length)."""
    def write(old, new, axis: int):
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=axis)

    return Cache(tuple(write(o, n, 2) for o, n in zip(cache.layers, own.layers, strict=True)),
                 tuple(write(o, n, 1) for o, n in zip(cache.final, own.final, strict=True)))
