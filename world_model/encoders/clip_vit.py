"""The picture encoder of CLIP ViT-H/14 (open-clip, XLM-R-large) as Wan uses it: features before the last of its 32
layers (Wan-Video/Wan2.1 at 9737cba, wan/modules/clip.py; docs/references/encoders.md). Nothing after them is read, so
31 layers are all there are.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from world_model import functional
from world_model.attention.blockwise import dense
from world_model.encoders import names as encoder_names
from world_model.encoders.names import TensorTable
from world_model.encoders.weights import NO_FILE, FromFile, WeightsFile
from world_model.layers.transformer import Mlp, linear
from world_model.parallel import axes

EPS = 1e-5
MEAN = (0.48145466, 0.4578275, 0.40821073)  # mean of pixels in [0, 1], by channel
STD = (0.26862954, 0.26130258, 0.27577711)
CUBIC = -0.75  # PyTorch's bicubic kernel; others use -0.5


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """Sizes; the defaults are those of ViT-H/14."""

    size: int = 224  # pixels
    patch: int = 14  # pixels
    dim: int = 1280
    heads: int = 16
    layers: int = 31  # layers that run

    @property
    def tokens(self) -> int:
        """The number of tokens: the class token and the patches."""
        return 1 + (self.size // self.patch) ** 2


def layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm with scale and bias."""
    return nnx.LayerNorm(dim, epsilon=EPS, use_fast_variance=False, rngs=rngs)


class ClipAttention(nnx.Module):
    """Self-attention of all tokens."""

    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv, self.o = linear(dim, 3 * dim, rngs), linear(dim, dim, rngs)

    def __call__(self, x):
        q, k, v = (a.reshape(*x.shape[:2], self.heads, -1) for a in jnp.split(self.qkv(x), 3, axis=-1))
        return self.o(dense(q, k, v).reshape(x.shape))


class ClipLayer(nnx.Module):
    """Attention and MLP (erf-GELU), each after its norm."""

    def __init__(self, spec: ClipSpec, rngs: nnx.Rngs):
        self.norm1, self.norm2 = layer_norm(spec.dim, rngs), layer_norm(spec.dim, rngs)
        self.self_attn = ClipAttention(spec.dim, spec.heads, rngs)
        self.mlp = Mlp(spec.dim, 4 * spec.dim, spec.dim, rngs, functools.partial(jax.nn.gelu, approximate=False))

    def __call__(self, x):
        x = x + self.self_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClipVit(nnx.Module):
    """Makes features of every token from normalised pixels. The layers are stacked and scanned."""

    def __init__(self, spec: ClipSpec, rngs: nnx.Rngs):
        self.spec, small = spec, nnx.initializers.normal(0.02)
        self.patch_embedding = nnx.Param(small(rngs.params(), (3 * spec.patch**2, spec.dim)))
        self.class_embedding = nnx.Param(small(rngs.params(), (spec.dim,)))
        self.position_embedding = nnx.Param(small(rngs.params(), (spec.tokens, spec.dim)))
        self.pre_norm = layer_norm(spec.dim, rngs)
        self.blocks = nnx.split_rngs(splits=spec.layers)(nnx.vmap(lambda r: ClipLayer(spec, r)))(rngs)

    def __call__(self, pixels):
        """[B, size, size, 3] -> [B, tokens, D]."""
        patches = rearrange(pixels, "b (h p) (w q) c -> b (h w) (p q c)", p=self.spec.patch, q=self.spec.patch)
        first = jnp.broadcast_to(self.class_embedding[...], (len(pixels), 1, self.spec.dim))
        x = jnp.concatenate([first, patches @ self.patch_embedding[...]], axis=1) + self.position_embedding[...]
        shapes = axes.layer_shapes(functional.shapes(ClipVit, self.spec))

        def step(x, params):
            return functional.bind(self.blocks, axes.gather_weights(params, shapes, axes.ENCODER_RULES))(x), None

        return jax.lax.scan(step, self.pre_norm(x), functional.parameters(self.blocks))[0]


def bicubic(size: int, target: int) -> np.ndarray:
    """float32 [target, size]: PyTorch's bicubic resize of one axis, without antialiasing; edges repeat."""
    at = (np.arange(target) + 0.5) * size / target - 0.5
    base = np.floor(at).astype(int)
    matrix = np.zeros((target, size))
    for tap in range(-1, 3):
        far = np.abs(at - (base + tap))
        near = (CUBIC + 2) * far**3 - (CUBIC + 3) * far**2 + 1
        outer = CUBIC * (far**3 - 5 * far**2 + 8 * far - 4)
        np.add.at(matrix, (np.arange(target), np.clip(base + tap, 0, size - 1)), np.where(far <= 1, near, outer))
    return matrix.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ClipImage(FromFile):
    """An `ImageEncoder` by CLIP; arrays are those of `ClipVit`, of `dtype`."""

    spec: ClipSpec = ClipSpec()
    weights: WeightsFile = NO_FILE
    dtype: str = "float32"

    network = ClipVit

    @property
    def image_tokens(self) -> int:
        """The number of features, one a token."""
        return self.spec.tokens

    @property
    def image_dim(self) -> int:
        """The width of the features."""
        return self.spec.dim

    @property
    def tables(self) -> dict[str, TensorTable]:
        """See `FromFile`."""
        return encoder_names.clip(self.spec.layers)

    def encode(self, params: dict, frames: jax.Array) -> jax.Array:
        """float [B, H, W, 3] in [-1, 1], squashed to a square -> float32 [B, tokens, D]."""
        rows, columns = (jnp.asarray(bicubic(n, self.spec.size)) for n in frames.shape[1:3])
        pixels = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, frames.astype(jnp.float32))
        pixels = (pixels * 0.5 + 0.5 - jnp.array(MEAN)) / jnp.array(STD)
        params = axes.gather_weights(params, functional.shapes(ClipVit, self.spec), axes.ENCODER_RULES)
        return functional.bind(self.module, params)(pixels.astype(self.dtype)).astype(jnp.float32)
