"""Replica of Wan's 14B transformer as MaxDiffusion trains it: all in bfloat16, a video's tokens shared by devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from benchmarks.calibration import kernels

TOKENS = P("data", "fsdp", "tensor")  # weights and tokens of a video lie along the same axis


@dataclasses.dataclass(frozen=True)
class Video:
    """One published run's model and step."""

    tile: int  # tokens on a side of an attention kernel's tile
    fused: bool
    text_places: int  # keys of cross-attention as padded
    length: int = 75_600  # 21 x 45 x 80
    dim: int = 5120
    ffn: int = 13_824
    layers: int = 40
    heads: int = 40
    text: int = 512
    text_dim: int = 4096
    patch: int = 64
    moment: str = "bfloat16"

    def shapes(self) -> dict[str, tuple[tuple[int, ...], P]]:
        """{parameter: (shape, sharding)}; those of layers are stacked."""
        n, d = self.layers, self.dim
        square = (n, d, d), P(None, "fsdp", "tensor")
        found = {f"{part}_{name}": square for part in ("self", "cross") for name in ("query", "key", "value", "out")}
        return found | {
            "up": ((n, d, self.ffn), P(None, "fsdp", "tensor")), "down": ((n, self.ffn, d), P(None, "tensor", "fsdp")),
            "norms": ((n, 6, d), P()), "modulation": ((n, 6, d), P()), "biases": ((n, 10, d), P()),
            "up_bias": ((n, self.ffn), P()), "patch": ((self.patch, d), P(None, "fsdp")),
            "text": ((self.text_dim, d), P("fsdp")), "text_out": ((d, d), P("fsdp")), "time": ((d, 6 * d), P("fsdp")),
            "head": ((d, self.patch), P("fsdp"))}

    def flops(self) -> dict[str, float]:
        """FLOP of a sample, three times the forward pass."""
        n, d, tokens = self.layers, self.dim, self.length
        return {"products": 6.0 * n * tokens * (6 * d * d + 2 * d * self.ffn) + 12.0 * n * self.text * d * d,
                "self_attention": 12.0 * n * d * tokens**2, "cross_attention": 12.0 * n * d * tokens * self.text}

    def batch(self, samples: int) -> dict[str, tuple[tuple[int, ...], str, P]]:
        """{array: (shape, dtype, sharding)} of a batch."""
        video = (samples, self.length, self.patch), "bfloat16", P("data", "fsdp")
        return {"noisy": video, "target": video, "text": ((samples, self.text, self.text_dim), "bfloat16", P("data")),
                "time": ((samples, self.dim), "bfloat16", P("data"))}

    def loss(self, params: dict, batch: dict, mesh):
        """Computes the mean squared error of the velocity."""
        x = _tokens(batch["noisy"] @ params["patch"])
        text = jax.nn.gelu(batch["text"] @ params["text"]) @ params["text_out"]
        modulation = (batch["time"] @ params["time"]).reshape(-1, 6, self.dim)
        alone = ("patch", "text", "text_out", "time", "head")
        stacked = {name: w for name, w in params.items() if name not in alone}
        layer = jax.checkpoint(functools.partial(self.layer, mesh, text, modulation), prevent_cse=False)
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, stacked)
        error = (_norm(x) @ params["head"]).astype(jnp.float32) - batch["target"]
        return jnp.square(error).mean()

    def layer(self, mesh, text, modulation, x, w):
        """One layer, x [B, L, D]."""
        x = _tokens(x)
        shift, scale, gate, shift2, scale2, gate2 = jnp.split(
            (w["modulation"] + modulation).astype(jnp.float32), 6, axis=1)
        h = (_norm(x, jnp.float32) * (1 + scale) + shift).astype(x.dtype)
        a = self.attend(mesh, h, h, w, "self", 0)
        x = (x.astype(jnp.float32) + a * gate).astype(x.dtype)
        h = (_norm(x, jnp.float32) * w["norms"][4] + w["norms"][5]).astype(x.dtype)
        x = x + self.attend(mesh, h, text, w, "cross", 4)
        h = (_norm(x, jnp.float32) * (1 + scale2) + shift2).astype(x.dtype)
        down = jax.nn.gelu(h @ w["up"] + w["up_bias"]) @ w["down"] + w["biases"][8]
        return (x.astype(jnp.float32) + down.astype(jnp.float32) * gate2).astype(x.dtype)

    def attend(self, mesh, x, context, w, part: str, first: int):
        """Self- or cross-attention of tokens x over context, both [B, L, D]."""
        rotary = part == "self"
        q, k, v = (source @ w[f"{part}_{name}"] + w["biases"][first + i]
                   for i, (name, source) in enumerate((("query", x), ("key", context), ("value", context))))
        norms = w["norms"][0 if rotary else 2], w["norms"][1 if rotary else 3]
        q, k = (rms(y, norm).reshape(*y.shape[:2], self.heads, -1) for y, norm in zip((q, k), norms))
        v = v.reshape(*v.shape[:2], self.heads, -1)
        if rotary:
            q, k = rotate(q), rotate(k)
        spec, whole = P("data", None, "fsdp"), P("data")
        a = jax.shard_map(functools.partial(self.attend_local, rotary), mesh=mesh, in_specs=(spec, whole, whole),
                          out_specs=spec, check_vma=False)(*(jnp.swapaxes(y, 1, 2) for y in (q, k, v)))
        return _tokens(jnp.swapaxes(a, 1, 2).reshape(x.shape)) @ w[f"{part}_out"] + w["biases"][first + 3]

    def attend_local(self, own: bool, q, k, v):
        """One device's queries [B, n, Lq, d] over all keys, padded to whole tiles."""
        side = self.tile if own else self.text_places
        queries, keys = _padded(q.shape[2], self.tile), _padded(k.shape[2], side)
        attend = kernels.make_attend(False, queries, keys, self.heads, (self.tile, side), fused=self.fused)
        ids = kernels.splash.SegmentIds((jnp.arange(queries) < q.shape[2]).astype(jnp.int32),
                                        (jnp.arange(keys) < k.shape[2]).astype(jnp.int32))
        padded = (jnp.pad(y, ((0, 0), (0, 0), (0, places - y.shape[2]), (0, 0)))
                  for y, places in ((q, queries), (k, keys), (v, keys)))
        return attend(*padded, ids)[:, :, :q.shape[2]]


def _tokens(x):
    """Keeps activations where their tokens are."""
    return jax.lax.with_sharding_constraint(x, TOKENS)


def _padded(length: int, tile: int) -> int:
    return -(-length // tile) * tile


def _norm(x, dtype=None):
    """LayerNorm without parameters, in float32."""
    wide = x.astype(jnp.float32)
    wide -= wide.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)).astype(dtype or x.dtype)


def rms(x, scale):
    """RMSNorm in float32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6) * scale).astype(x.dtype)


def rotate(x):
    """Rotary positions of neighbouring pairs, x [B, L, n, d]."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], half, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = first * jnp.cos(angles) - second * jnp.sin(angles), first * jnp.sin(angles) + second * jnp.cos(angles)
    return jnp.stack(turned, -1).reshape(x.shape).astype(x.dtype)
