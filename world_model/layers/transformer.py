"""The layers of Wan's transformer, which families on it share: modulated self-attention, cross-attention, MLP.

The first L - 1 layers are stacked and scanned. The last stands apart, because its job is smaller: only tokens
that an output head reads are queries; the clean copy and the states give it keys and values alone.

Modulation depends on the timestep, not on the token: timestep_rows.py.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from world_model.attention import ring
from world_model.attention.blockwise import dense
from world_model.layers import compiler_hints, matmul
from world_model.layers.norms import LayerNorm, RMSNorm, layer_norm
from world_model.layers.rotary import rotate
from world_model.layers.timestep_rows import TimestepRows
from world_model.parallel.remat import ATTENTION_OUTPUT, MLP_HIDDEN, MLP_OUTPUT, PROJECTED
from world_model.parallel.sharding import constrain

ATTENTION_SCOPE = "attend"  # a plan finds self-attention in a compiled program by this name
xavier = nnx.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """What one forward pass is made of, besides weights and tokens. Static apart from the arrays in `rotary`."""

    rows: TimestepRows
    rotary: jax.Array  # [2, L, d/2]
    attend: Callable  # every token queries
    output_rows: TimestepRows | None  # rows of the tokens that the heads read; None: nothing is read
    output_row_start: int
    output_slice: slice  # the same tokens in the sequence
    attend_output: Callable | None  # only those tokens query
    attend_context: Callable = dense  # cross-attention: attention/context.py


class Linear(nnx.Linear):
    """nnx.Linear by a product of world_model/layers/matmul.py; with an adapter where world_model/layers/lora.py gave it
    one."""

    lora_a = None
    product = staticmethod(matmul.plain)

    def __call__(self, x):
        y = self.product(x, self.kernel[...])
        if self.bias is not None:
            y = y + self.bias[...]
        if self.lora_a is None:
            return y
        return y + self.lora_scale * matmul.plain(matmul.plain(x, self.lora_a[...]), self.lora_b[...])


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, init=xavier, bias: bool = True) -> Linear:
    """A dense layer with kernel [inputs, outputs] and zero bias, or without one."""
    return Linear(inputs, outputs, use_bias=bias, kernel_init=init, rngs=rngs)


class Mlp(nnx.Module):
    """fc1, tanh-GELU, fc2."""

    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs,
                 activation=lambda x: jax.nn.gelu(x, approximate=True), init=xavier):
        self.fc1 = linear(inputs, hidden, rngs, init)
        self.fc2 = linear(hidden, outputs, rngs, init)
        self.activation = activation

    def __call__(self, x):
        return self.fc2(self.activation(checkpoint_name(self.fc1(x), MLP_HIDDEN)))


class SelfAttention(nnx.Module):
    """Projections of self-attention; which tokens meet is the caller's business.

    inner: width of all query heads, `dim` if None. kv_heads: heads of keys and values, of which each serves
    heads / kv_heads query heads; `heads` if None.
    """

    def __init__(self, dim: int, heads: int, qk_scale: float, rngs: nnx.Rngs, inner: int | None = None,
                 kv_heads: int | None = None):
        self.heads, self.kv_heads, inner = heads, kv_heads or heads, inner or dim
        shared = inner * self.kv_heads // heads
        self.q, self.k, self.v = (linear(dim, width, rngs) for width in (inner, shared, shared))
        self.o = linear(inner, dim, rngs)
        self.q_norm, self.k_norm = RMSNorm(inner, qk_scale), RMSNorm(shared, qk_scale)

    def split(self, x, heads: int | None = None):
        """[B, L, D] -> [B, L, n, d]; each of fewer `heads` is repeated for the query heads that it serves."""
        x = x.reshape(*x.shape[:-1], heads or self.heads, -1)
        if heads and heads != self.heads:
            x = jnp.repeat(x, self.heads // heads, axis=2)
        meeting = ("tokens", "heads") if ring.needed(self.heads) else (None, "attention_heads")
        return constrain(x, "batch", *meeting, None)

    def queries(self, x, rotary):
        """Rotated queries [B, L, n, d]."""
        return self.rotated(self.q_norm, self.q(x), rotary)

    def keys_values(self, x, rotary):
        """Rotated keys and values, [B, L, n, d] each."""
        keys = self.rotated(self.k_norm, self.k(x), rotary, self.kv_heads)
        return keys, self.split(checkpoint_name(self.v(x), PROJECTED), self.kv_heads)

    def rotated(self, norm: RMSNorm, x, rotary, heads: int | None = None):
        """[B, L, D] -> [B, L, n, d], normalised and rotated."""
        x = norm(compiler_hints.materialize_gradient(checkpoint_name(x, PROJECTED)))
        return rotate(self.split(x, heads), rotary)

    def output(self, x):
        """Joins heads and projects: [B, L, n, d] -> [B, L, D]."""
        return checkpoint_name(compiler_hints.row_major(self.o(compiler_hints.join_heads(x))), ATTENTION_OUTPUT)


class CrossAttention(nnx.Module):
    """Attention to text and, apart with its own softmax, to image features; the results are added."""

    def __init__(self, dim: int, heads: int, with_image: bool, rngs: nnx.Rngs):
        self.heads = heads
        self.q, self.k, self.v, self.o = (linear(dim, dim, rngs) for _ in range(4))
        self.q_norm, self.k_norm = RMSNorm(dim), RMSNorm(dim)
        if with_image:
            self.k_image, self.v_image = linear(dim, dim, rngs), linear(dim, dim, rngs)
            self.k_image_norm = RMSNorm(dim)

    def split(self, x):
        """[B, L, D] -> [B, L, n, d]."""
        return constrain(x.reshape(*x.shape[:-1], self.heads, -1), "batch", None, "heads", None)

    def keys_values(self, text, image):
        """Pairs (keys, values) of text [B, Lt, D] and image [B, Li, D] or None; they do not depend on the tokens."""
        pairs = [(self.split(self.k_norm(self.k(text))), self.split(self.v(text)))]
        if image is not None:
            pairs.append((self.split(self.k_image_norm(self.k_image(image))), self.split(self.v_image(image))))
        return tuple(pairs)

    def __call__(self, x, context, attend):
        q = self.q_norm(compiler_hints.materialize_gradient(checkpoint_name(self.q(x), PROJECTED)))
        q = constrain(q.reshape(*q.shape[:-1], self.heads, -1), "batch", "tokens", "heads", None)
        out = sum(attend(q, k, v) for k, v in context)
        return checkpoint_name(compiler_hints.row_major(self.o(compiler_hints.join_heads(out))), ATTENTION_OUTPUT)


class QueryTokens(NamedTuple):
    """Tokens on their way through a layer, before attention."""

    x: jax.Array  # [B, Lq, D]
    queries: jax.Array  # [B, Lq, n, d]
    modulation: jax.Array  # [B, R, 6, D] of their rows
    rows: TimestepRows


class Layer(nnx.Module):
    """One transformer layer. head_dim: the width of a head where it is not dim / heads, in a narrow stream that is
    joined to a wide one in self-attention; its cross-attention has as many heads of that width as fit into dim."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, with_image: bool, qk_scale: float, rngs: nnx.Rngs,
                 head_dim: int | None = None):
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (6, dim)) * dim**-0.5)
        self.self_attn = SelfAttention(dim, heads, qk_scale, rngs, head_dim and heads * head_dim)
        self.cross_norm = LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, dim // head_dim if head_dim else heads, with_image, rngs)
        self.mlp = Mlp(dim, ffn_dim, dim, rngs)

    def context_keys_values(self, context):
        """Cross-attention's keys and values of (text, image): they do not depend on the tokens."""
        return self.cross_attn.keys_values(*context)

    def __call__(self, x, rows, context, forward_pass: ForwardPass, *, key_valid=None, cache=None, only_output=False):
        """x [B, L, D], rows [B, R, 6, D] -> (x of the querying tokens or None, this layer's own (keys, values)).

        cache: keys and values that stand before the layer's own. only_output: just the tokens of the heads query.
        """
        own, querying = self.pre_attention(x, rows, forward_pass, only_output)
        if querying is None:
            return None, own
        keys, values = own
        if cache is not None:
            keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(cache, own, strict=True))
        attend = forward_pass.attend_output if only_output else forward_pass.attend
        with jax.named_scope(ATTENTION_SCOPE):
            attended = attend(querying.queries, keys, values, key_valid)
        return self.post_attention(querying, attended, context, forward_pass.attend_context), own

    def pre_attention(self, x, rows, forward_pass: ForwardPass, only_output: bool):
        """The part before attention: (own keys and values, the querying tokens or None)."""
        x, modulation = compiler_hints.row_major(x), self.modulation[...] + rows
        shift, scale = (forward_pass.rows.expand(modulation[:, :, i]) for i in (0, 1))
        h = compiler_hints.materialize(layer_norm(x) * (1 + scale) + shift)
        own = self.self_attn.keys_values(h, forward_pass.rotary)
        if not only_output:
            return own, QueryTokens(x, self.self_attn.queries(h, forward_pass.rotary), modulation, forward_pass.rows)
        if forward_pass.output_rows is None:
            return own, None
        x, h, rotary = (a[:, forward_pass.output_slice] for a in (x, h, forward_pass.rotary))
        count = sum(n for n, _ in forward_pass.output_rows.parts)
        modulation = modulation[:, forward_pass.output_row_start:forward_pass.output_row_start + count]
        return own, QueryTokens(x, self.self_attn.queries(h, rotary), modulation, forward_pass.output_rows)

    def post_attention(self, querying: QueryTokens, attended, context, attend_context=dense):
        """The part after attention, whose result is `attended`: the layer's output [B, Lq, D]."""
        x, _, modulation, rows = querying
        gate, shift, scale, gate_mlp = (rows.expand(modulation[:, :, i]) for i in (2, 3, 4, 5))
        x = constrain(x + gate * self.self_attn.output(attended), "batch", "tokens", None)
        x = x + self.cross_attn(self.cross_norm(x), context, attend_context)
        h = compiler_hints.materialize(layer_norm(x) * (1 + scale) + shift)
        x = x + gate_mlp * checkpoint_name(self.mlp(h), MLP_OUTPUT)
        return constrain(x, "batch", "tokens", None)
