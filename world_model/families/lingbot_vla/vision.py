"""The vision tower: that of Qwen2.5-VL (arXiv 2502.13923, section 2.1.1) or of Qwen3-VL (arXiv 2511.21631), by name.

Each view is looked at alone. Patches stand in the processor's order, the four of a token next to each other, so that
merging them is a reshape. Windows are a mask on pairs of patches: at 224 pixels that is 2% of a layer's work.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from world_model import functional
from world_model.families.lingbot_vla.layers import GatedMlp, attend, dense_init, make_stack, project
from world_model.families.lingbot_vla.spec import MERGE, LingBotVLASpec
from world_model.layers import rotary
from world_model.layers.norms import LayerNorm, RMSNorm
from world_model.layers.transformer import Mlp
from world_model.parallel import axes, remat
from world_model.parallel.remat import ATTENTION_OUTPUT, PROJECTED

Grid = tuple[int, int]  # patch rows and columns


class VisionAttention(nnx.Module):
    """Self-attention of a view's patches."""

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        self.spec, dim = spec, spec.vision_dim
        self.qkv, self.o = project(dim, 3 * dim, rngs), project(dim, dim, rngs)

    def __call__(self, x, angles, mask):
        """x [B, n, D], angles [2, n, d/2], mask bool [n, n]."""
        q, k, v = (a.reshape(*x.shape[:2], self.spec.vision_heads, -1)
                   for a in jnp.split(checkpoint_name(self.qkv(x), PROJECTED), 3, axis=-1))
        q, k = rotary.rotate(q, angles), rotary.rotate(k, angles)
        out = attend(self.spec, q, k, v, mask[None]).reshape(x.shape)
        return checkpoint_name(self.o(out), ATTENTION_OUTPUT)


class VisionLayer(nnx.Module):
    """Attention and MLP, each after its norm."""

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        dim, ffn = spec.vision_dim, spec.vision_ffn_dim
        self.norm1, self.norm2 = make_norm(spec, dim), make_norm(spec, dim)
        self.self_attn = VisionAttention(spec, rngs)
        self.mlp = (GatedMlp(dim, ffn, rngs, bias=True) if spec.vision == "qwen2_5" else
                    Mlp(dim, ffn, dim, rngs, init=dense_init))

    def __call__(self, x, angles, mask):
        x = x + self.self_attn(self.norm1(x), angles, mask)
        return x + self.mlp(self.norm2(x))


def make_norm(spec: LingBotVLASpec, dim: int) -> nnx.Module:
    """The tower's kind of norm."""
    return RMSNorm(dim) if spec.vision == "qwen2_5" else LayerNorm(dim)


class Merger(nnx.Module):
    """Four patches of D become one token of the language model's width. joined: the norm comes after joining them."""

    def __init__(self, spec: LingBotVLASpec, joined: bool, rngs: nnx.Rngs):
        wide = MERGE**2 * spec.vision_dim
        self.joined, self.norm = joined, make_norm(spec, wide if joined else spec.vision_dim)
        self.mlp = Mlp(wide, wide, spec.dim, rngs, functools.partial(jax.nn.gelu, approximate=False), dense_init)

    def __call__(self, x):
        """[B, n, D] -> [B, n / 4, language D]."""
        def join(x):
            return x.reshape(len(x), x.shape[1] // MERGE**2, -1)

        return self.mlp(self.norm(join(x)) if self.joined else join(self.norm(x)))


class VisionTower(nnx.Module):
    """Turns patches of views into tokens of the language model."""

    def __init__(self, spec: LingBotVLASpec, rngs: nnx.Rngs):
        self.spec = spec
        self.patch_embedding = project(spec.patch_values, spec.vision_dim, rngs, spec.vision == "qwen3")
        if spec.vision_positions:
            self.position_embedding = nnx.Param(dense_init(rngs.params(), (spec.vision_positions**2, spec.vision_dim)))
        self.blocks = make_stack(spec, "vision", VisionLayer, spec.vision_layers, rngs)
        self.merger = Merger(spec, False, rngs)
        for i in range(len(spec.vision_taps)):
            setattr(self, f"tap_merger_{i}", Merger(spec, True, rngs))

    def __call__(self, patches, shapes: dict, rules: axes.Rules, grid: Grid):
        """patches [B, n, values] in the processor's order -> tokens [B, n / 4, D] and those of the tapped layers
        [taps, B, n / 4, D]. shapes: of a layer's whole weights, for gathering them; grid: n's rows and columns."""
        spec, x = self.spec, self.patch_embedding(patches.astype(self.patch_embedding.kernel.dtype))
        if spec.vision_positions:
            x = x + self.positions(grid).astype(x.dtype)
        angles, window = rotary.constant(patch_angles(grid, spec.vision_dim // spec.vision_heads)), windows(spec, grid)
        full = np.isin(np.arange(spec.vision_layers), spec.vision_full_layers) | (not spec.vision_window)
        taps = jnp.zeros((len(spec.vision_taps), *x.shape), x.dtype)

        def run(carry, inputs):
            x, taps = carry
            params, full, index = inputs
            params = axes.fill_lanes(axes.gather_weights(params, shapes, rules), rules)
            x = functional.bind(self.blocks, params)(x, angles, jnp.logical_or(window, full))
            if spec.vision_taps:
                here = np.array(spec.vision_taps) == index
                taps = jnp.where(here[:, None, None, None], x, taps)
            return (x, taps), None

        layers = functional.parameters(self.blocks), jnp.asarray(full), jnp.arange(spec.vision_layers)
        (x, taps), _ = jax.lax.scan(remat.remat(run, spec.remat), (x, taps), layers)
        merged = self.merger(x)
        tapped = [getattr(self, f"tap_merger_{i}")(tap) for i, tap in enumerate(taps)]
        return merged, jnp.stack(tapped) if tapped else jnp.zeros((0, *merged.shape), merged.dtype)

    def positions(self, grid: Grid):
        """Learned positions of a square, interpolated to the grid, float32 [n, D]."""
        table = self.position_embedding[...].astype(jnp.float32)
        rows, columns = (interpolation(self.spec.vision_positions, size) for size in grid)
        square = table.reshape(self.spec.vision_positions, self.spec.vision_positions, -1)
        return in_order(jnp.einsum("ri,cj,ijd->rcd", rows, columns, square))


def interpolation(size: int, target: int) -> np.ndarray:
    """float32 [target, size]: linear interpolation of `size` points at `target` ones, ends on ends."""
    at = np.linspace(0, size - 1, target, dtype=np.float32)
    low = at.astype(int)
    weights = np.zeros((target, size), np.float32)
    rows, rest = np.arange(target), at - low
    weights[rows, low] += 1 - rest
    weights[rows, np.minimum(low + 1, size - 1)] += rest
    return weights


def in_order(x):
    """[rows, columns, ...] -> [n, ...]: patches in the processor's order, the four of a token next to each other."""
    rows, columns = x.shape[0] // MERGE, x.shape[1] // MERGE
    x = x.reshape(rows, MERGE, columns, MERGE, *x.shape[2:])
    return x.swapaxes(1, 2).reshape(-1, *x.shape[4:])


def patch_positions(grid: Grid) -> np.ndarray:
    """int [n, 2]: row and column of each patch."""
    return in_order(np.stack(np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij"), axis=-1))


def patch_angles(grid: Grid, head_dim: int) -> np.ndarray:
    """float64 [n, d / 2]: the first half turns by the row, the second by the column."""
    rows, columns = patch_positions(grid).T
    return np.concatenate([rotary.index_angles(at, head_dim // 2) for at in (rows, columns)], axis=-1)


def windows(spec: LingBotVLASpec, grid: Grid) -> np.ndarray:
    """bool [n, n]: whether two patches are in one window of model.vision_window x model.vision_window tokens."""
    if not spec.vision_window:
        return np.ones((grid[0] * grid[1],) * 2, bool)
    window = patch_positions(grid) // (MERGE * spec.vision_window)
    return (window[:, None] == window[None]).all(axis=-1)


def make_patches(spec: LingBotVLASpec, views):
    """uint8 [B, V, H, W, 3] -> float32 [B, V, n, values], as Qwen's processor makes them of single pictures."""
    mean, std = PIXELS[spec.vision]
    x = (views.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)
    p = spec.vision_patch
    x = rearrange(x, "b v (h i p) (w j q) c -> b v (h w i j) c (p q)", i=MERGE, j=MERGE, p=p, q=p)
    x = jnp.stack([x, x], axis=-2)  # the picture stands in both frames of a patch
    return x.reshape(*x.shape[:3], -1)


# Mean and deviation of pixels in [0, 1], as the processors of the two towers subtract and divide by them.
PIXELS = {"qwen2_5": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
          "qwen3": ((0.5,) * 3, (0.5,) * 3)}
