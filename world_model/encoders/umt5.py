"""The encoder of UMT5-XXL: a bidirectional T5 with a table of relative positions in every layer (Wan-Video/Wan2.1 at
9737cba, wan/modules/t5.py; docs/references/encoders.md).

Queries are not scaled, linears have no bias, norms are by root mean square, the MLP is gated by tanh-GELU.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from world_model import functional
from world_model.attention.reference import NEGATIVE
from world_model.encoders import names as encoder_names
from world_model.encoders import tokenizer
from world_model.encoders.names import TensorTable
from world_model.encoders.weights import NO_FILE, FromFile, WeightsFile
from world_model.layers.matmul import plain as product
from world_model.layers.transformer import RMSNorm, xavier
from world_model.parallel import axes


@dataclasses.dataclass(frozen=True)
class Umt5Spec:
    """Sizes; the defaults are UMT5-XXL's."""

    vocabulary: int = 256_384
    dim: int = 4096
    heads: int = 64
    head_dim: int = 64
    ffn_dim: int = 10_240
    layers: int = 24
    buckets: int = 32  # buckets of relative positions, half of them for keys after the query
    max_distance: int = 128  # distances from here on share a bucket


class Projection(nnx.Module):
    """A linear layer without bias."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(xavier(rngs.params(), (inputs, outputs)))

    def __call__(self, x):
        return product(x, self.kernel[...])


class Umt5Attention(nnx.Module):
    """Self-attention with a bias by relative position."""

    def __init__(self, spec: Umt5Spec, rngs: nnx.Rngs):
        inner = spec.heads * spec.head_dim
        self.heads = spec.heads
        self.q, self.k, self.v = (Projection(spec.dim, inner, rngs) for _ in range(3))
        self.o = Projection(inner, spec.dim, rngs)
        self.position_bias = nnx.Param(jnp.zeros((spec.buckets, spec.heads)))

    def __call__(self, x, bucket, key_valid):
        """x [B, L, D], bucket int [L, L], key_valid bool [B, L]."""
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32)
        logits += self.position_bias[...].astype(jnp.float32)[bucket].transpose(2, 0, 1)
        weights = jax.nn.softmax(jnp.where(key_valid[:, None, None], logits, NEGATIVE), axis=-1).astype(v.dtype)
        return self.o(jnp.einsum("bnqk,bknd->bqnd", weights, v).reshape(*x.shape[:2], -1))


class GatedMlp(nnx.Module):
    """The gated MLP fc2(fc1(x) * gelu(gate(x)))."""

    def __init__(self, spec: Umt5Spec, rngs: nnx.Rngs):
        self.gate, self.fc1 = (Projection(spec.dim, spec.ffn_dim, rngs) for _ in range(2))
        self.fc2 = Projection(spec.ffn_dim, spec.dim, rngs)

    def __call__(self, x):
        return self.fc2(self.fc1(x) * jax.nn.gelu(self.gate(x), approximate=True))


class Umt5Layer(nnx.Module):
    """Attention and MLP, each after its norm."""

    def __init__(self, spec: Umt5Spec, rngs: nnx.Rngs):
        self.norm1, self.self_attn = RMSNorm(spec.dim), Umt5Attention(spec, rngs)
        self.norm2, self.mlp = RMSNorm(spec.dim), GatedMlp(spec, rngs)

    def __call__(self, x, bucket, key_valid):
        x = x + self.self_attn(self.norm1(x), bucket, key_valid)
        return x + self.mlp(self.norm2(x))


class Umt5(nnx.Module):
    """Makes features of token ids. The layers are stacked and scanned."""

    def __init__(self, spec: Umt5Spec, rngs: nnx.Rngs):
        self.spec = spec
        self.token_embedding = nnx.Param(jax.random.normal(rngs.params(), (spec.vocabulary, spec.dim)))
        self.blocks = nnx.split_rngs(splits=spec.layers)(nnx.vmap(lambda r: Umt5Layer(spec, r)))(rngs)
        self.norm = RMSNorm(spec.dim)

    def __call__(self, ids, key_valid):
        """int [B, L], bool [B, L] -> [B, L, D]; rows past the prompt hold anything."""
        shapes = axes.layer_shapes(functional.shapes(Umt5, self.spec))
        bucket = jnp.asarray(buckets(ids.shape[1], self.spec.buckets, self.spec.max_distance))

        def step(x, params):
            weights = axes.gather_weights(params, shapes, axes.ENCODER_RULES)
            return functional.bind(self.blocks, weights)(x, bucket, key_valid), None

        x, _ = jax.lax.scan(step, self.token_embedding[...][ids], functional.parameters(self.blocks))
        return self.norm(x)


def buckets(length: int, count: int, max_distance: int) -> np.ndarray:
    """Returns int [L, L], the bucket of (query, key). Half of the buckets are for keys after the query. Of each half,
    half hold one distance each, and the others' ranges grow by a factor."""
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half, far = count // 2, np.abs(distance)
    exact = half // 2
    with np.errstate(divide="ignore"):
        growth = np.log(far.astype(np.float32) / exact) / np.float32(np.log(max_distance / exact)) * (half - exact)
    large = np.minimum(exact + np.maximum(growth, 0).astype(np.int32), half - 1)
    return np.where(far < exact, far, large) + half * (distance > 0)


@dataclasses.dataclass(frozen=True)
class Umt5Text(FromFile):
    """A `TextEncoder` by UMT5; arrays are those of `Umt5`, of `dtype`."""

    text_length: int
    spec: Umt5Spec = Umt5Spec()
    weights: WeightsFile = NO_FILE
    tokenizer: str = ""  # a local tokenizer.json or SentencePiece .model
    dtype: str = "float32"

    network = Umt5

    @property
    def text_dim(self) -> int:
        """The width of the features."""
        return self.spec.dim

    @property
    def tables(self) -> dict[str, TensorTable]:
        """See `FromFile`."""
        return encoder_names.umt5(self.spec.layers)

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        """Returns (int32 [text_length], number of tokens). Raises ValueError where the prompt has more, or the
        tokenizer's file is missing."""
        return tokenizer.tokenize(self.tokenizer, prompt, self.text_length)

    def encode(self, params: dict, ids: jax.Array, length: jax.Array) -> jax.Array:
        """int32 [B, text_length], int32 [B] -> float32 [B, text_length, D], zero past each length."""
        real = jnp.arange(ids.shape[1]) < jnp.asarray(length)[:, None]
        params = axes.gather_weights(params, functional.shapes(Umt5, self.spec), axes.ENCODER_RULES)
        features = functional.bind(self.module, params)(ids, real)
        return jnp.where(real[..., None], features.astype(jnp.float32), 0)
