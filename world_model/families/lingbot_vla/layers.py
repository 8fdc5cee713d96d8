"""Layers of the language model and of the action expert, which meet in attention alone.

Tokens of the language model never see the expert's, so the language model runs first, whole, and the expert's layers
take its keys and values: training, cached sampling and serving are one computation.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from world_model.attention import cudnn
from world_model.families.lingbot_vla.moe import MixtureOfExperts
from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.layers import lora
from world_model.layers.norms import RMSNorm
from world_model.layers.rotary import rotate
from world_model.layers.stack import stack_layers, with_product
from world_model.layers.transformer import ATTENTION_SCOPE, Linear, linear
from world_model.parallel.remat import ATTENTION_OUTPUT, MLP_HIDDEN, MLP_OUTPUT, PROJECTED
from world_model.parallel.sharding import constrain

dense_init = nnx.initializers.normal(0.02)


def project(inputs: int, outputs: int, rngs: nnx.Rngs, bias: bool = True) -> Linear:
    """A dense layer, with a bias or without."""
    return linear(inputs, outputs, rngs, dense_init, bias)


def layer_maker(spec: LingBotVLASpec, stack: str, layer: type) -> Callable:
    """make(rngs=...) of a layer of the stack of that name, with adapters where model.lora_stacks names it."""
    make: Callable = functools.partial(layer, spec)
    if spec.lora_rank and stack in spec.lora_stacks:
        make = lora.with_adapters(make, Linear, spec.lora_pattern, spec.lora_rank, spec.lora_alpha)
    return functools.partial(with_product, make, spec.matmul)


def make_stack(spec: LingBotVLASpec, stack: str, layer: type, count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` layers of the stack of that name, as one module."""
    return stack_layers(layer_maker(spec, stack, layer), count, rngs)


def attend(spec: LingBotVLASpec, queries, keys, values, mask):
    """Attention of queries [B, L, n, d] to keys and values [B, Lk, kv heads, d] under a mask bool [B or 1, L or 1, Lk];
    a query without any key gets what has no meaning."""
    with jax.named_scope(ATTENTION_SCOPE):
        if spec.attention == "cudnn":
            return cudnn.flash(queries, keys, values, pairs=mask)
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask[:, None], implementation="xla")


class GatedMlp(nnx.Module):
    """The gated MLP fc2(silu(gate(x)) * fc1(x))."""

    def __init__(self, dim: int, ffn_dim: int, rngs: nnx.Rngs, bias: bool = False):
        self.gate, self.fc1 = (project(dim, ffn_dim, rngs, bias) for _ in range(2))
        self.fc2 = project(ffn_dim, dim, rngs, bias)

    def __call__(self, x):
        gate, hidden = (checkpoint_name(layer(x), MLP_HIDDEN) for layer in (self.gate, self.fc1))
        return self.fc2(jax.nn.silu(gate) * hidden)


class Attention(nnx.Module):
    """Projections of one stream; each head of keys and values serves num_heads / kv_heads heads of queries."""

    def __init__(self, spec: LingBotVLASpec, dim: int, bias: bool, norm: bool, rngs: nnx.Rngs):
        self.spec = spec
        inner, shared = spec.num_heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q, self.k, self.v = (project(dim, n, rngs, bias) for n in (inner, shared, shared))
        self.o = project(inner, dim, rngs, bias=False)
        if norm:
            self.q_norm, self.k_norm = RMSNorm(spec.head_dim), RMSNorm(spec.head_dim)

    def heads(self, part: str, x):
        """Queries ("q"), keys or values of x [B, L, D], before rotation: [B, L, heads, d]."""
        y = checkpoint_name(getattr(self, part)(x), PROJECTED)
        y = y.reshape(*y.shape[:2], -1, self.spec.head_dim)
        norm = getattr(self, f"{part}_norm", None)
        return constrain(norm(y) if norm else y, "batch", None, "heads", None)

    def keys_values(self, x, angles):
        """Rotated keys, and values, [B, L, kv heads, d] each."""
        return rotate(self.heads("k", x), angles), self.heads("v", x)

    def attend(self, x, angles, keys, values, mask):
        """Attention of x [B, L, D] to keys and values [B, Lk, kv heads, d] under a mask bool [B, L, Lk]."""
        queries = rotate(self.heads("q", x), angles)
        out = attend(self.spec, queries, keys, values, mask)
        return checkpoint_name(self.o(out.reshape(*x.shape[:2], -1)), ATTENTION_OUTPUT)


class LanguageLayer(nnx.Module):
    """A layer of Qwen's language model."""

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        self.norm1, self.norm2 = RMSNorm(spec.dim), RMSNorm(spec.dim)
        self.self_attn = Attention(spec, spec.dim, spec.qkv_bias, spec.qk_norm, rngs)
        self.mlp = GatedMlp(spec.dim, spec.ffn_dim, rngs)

    def keys_values(self, x, angles):
        """All that others need of a last layer."""
        return self.self_attn.keys_values(self.norm1(x), angles)

    def __call__(self, x, angles, mask, rows=slice(None)):
        """x [B, L, D] -> (x of these rows, (keys, values) of all)."""
        h = self.norm1(x)
        keys, values = own = self.self_attn.keys_values(h, angles)
        x = x[:, rows] + self.self_attn.attend(h[:, rows], angles[:, :, rows], keys, values, mask[:, rows])
        return x + checkpoint_name(self.mlp(self.norm2(x)), MLP_OUTPUT), own


class AdaptiveNorm(nnx.Module):
    """RMS norm, scaled and shifted by a condition: (1 + gamma(c)) norm(x) + beta(c); at the start norm(x)."""

    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.norm = RMSNorm(dim)
        self.gamma, self.beta = (linear(dim, dim, rngs, nnx.initializers.zeros) for _ in range(2))

    def __call__(self, x, condition):
        """x [B, L, D], condition [B, D]."""
        return (1 + self.gamma(condition)[:, None]) * self.norm(x) + self.beta(condition)[:, None]


class ExpertLayer(nnx.Module):
    """A layer of the action expert: narrow, with the language model's heads."""

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        dim = spec.expert_dim
        self.norm1, self.norm2 = AdaptiveNorm(dim, rngs), AdaptiveNorm(dim, rngs)
        self.self_attn = Attention(spec, dim, True, False, rngs)
        self.mlp = (MixtureOfExperts(spec, functools.partial(GatedMlp, dim, spec.shared_ffn_dim), rngs) if spec.experts
                    else GatedMlp(dim, spec.expert_ffn_dim, rngs))

    def __call__(self, x, condition, angles, prefix, mask):
        """x [B, L, D], condition [B, D], prefix (keys, values) [B, Lp, kv heads, d], mask bool [B, L, Lp + L] ->
        (x, what the router did or None)."""
        x = self.attended(x, condition, angles, prefix, mask)
        h, routing = self.norm2(x, condition), None
        y = self.mlp(h)
        if isinstance(self.mlp, MixtureOfExperts):
            y, routing = y
        return x + checkpoint_name(y, MLP_OUTPUT), routing

    def attended(self, x, condition, angles, prefix, mask):
        """The first half of the layer."""
        h = self.norm1(x, condition)
        own = self.self_attn.keys_values(h, angles)
        keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(prefix, own, strict=True))
        return x + self.self_attn.attend(h, angles, keys, values, mask)
