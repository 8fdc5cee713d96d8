"""Replica of FLUX.1-dev as MaxDiffusion trains it: 19 layers of two streams, 38 of one, all in bfloat16."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from benchmarks.calibration import kernels
from benchmarks.calibration.decoder import ROWS, rows
from benchmarks.calibration.video import rms, rotate

STREAMS = ("text", "image")
KEPT = "qkv", "attention"  # what the backward pass finds of a layer of one stream


@dataclasses.dataclass(frozen=True)
class Image:
    """One published run's model and step."""

    tile: int  # tokens on a side of an attention kernel's tile
    pixels: int = 4096  # tokens of an image of 1024 x 1024
    text: int = 512
    dim: int = 3072
    ffn: int = 12_288
    doubles: int = 19
    singles: int = 38
    heads: int = 24
    text_dim: int = 4096
    patch: int = 64
    moment: str = "bfloat16"

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return self.text + self.pixels

    def shapes(self) -> dict[str, tuple[tuple[int, ...], P]]:
        """{parameter: (shape, sharding)}; those of layers are stacked."""
        d, f = self.dim, self.ffn
        linears = {f"{stream}_{name}": (self.doubles, *sizes) for stream in STREAMS for name, sizes in (
            ("qkv", (d, 3 * d)), ("out", (d, d)), ("up", (d, f)), ("down", (f, d)), ("modulation", (d, 6 * d)))}
        linears |= {f"single_{name}": (self.singles, *sizes) for name, sizes in (
            ("qkv", (d, 3 * d)), ("up", (d, f)), ("out", (d + f, d)), ("modulation", (d, 3 * d)))}
        found = {name: (shape, P(None, "fsdp", "tensor")) for name, shape in linears.items()}
        found |= {f"{name}_bias": ((n, wide), P()) for name, (n, _, wide) in linears.items()}
        heads = {"single": self.singles} | dict.fromkeys(STREAMS, self.doubles)
        found |= {f"{name}_norm": ((n, 2, d // self.heads), P()) for name, n in heads.items()}
        return found | {"patch": ((self.patch, d), P()), "words": ((self.text_dim, d), P()),
                        "time": ((4, d, d), P(None, "fsdp")), "head_modulation": ((d, 2 * d), P("fsdp")),
                        "head": ((d, self.patch), P())}

    def flops(self) -> dict[str, float]:
        """FLOP of a sample, three times the forward pass."""
        d, layers = self.dim, self.doubles + self.singles
        return {"products": 6.0 * layers * self.length * (4 * d * d + 2 * d * self.ffn),
                "self_attention": 12.0 * layers * d * self.length**2}

    def batch(self, samples: int) -> dict[str, tuple[tuple[int, ...], str, P]]:
        """{array: (shape, dtype, sharding)} of a batch."""
        image = (samples, self.pixels, self.patch), "bfloat16", P(ROWS)
        return {"noisy": image, "target": image, "text": ((samples, self.text, self.text_dim), "bfloat16", P(ROWS)),
                "time": ((samples, self.dim), "bfloat16", P(ROWS))}

    def loss(self, params: dict, batch: dict, mesh):
        """Computes the mean squared error of the velocity."""
        time = jax.nn.silu(functools.reduce(lambda x, w: jax.nn.silu(x @ w), params["time"], batch["time"]))
        streams = {"text": batch["text"] @ params["words"], "image": batch["noisy"] @ params["patch"]}
        doubles, singles = ({name: w for name, w in params.items() if name.partition("_")[0] in kinds}
                            for kinds in (STREAMS, ("single",)))
        double = jax.checkpoint(functools.partial(self.double, mesh, time))
        single = jax.checkpoint(functools.partial(self.single, mesh, time),
                                policy=jax.checkpoint_policies.save_only_these_names(*KEPT))
        streams, _ = jax.lax.scan(lambda x, w: (double(x, w), None), streams, doubles)
        x = jnp.concatenate([streams[stream] for stream in STREAMS], axis=1)
        x, _ = jax.lax.scan(lambda x, w: (single(x, w), None), x, singles)
        shift, scale = jnp.split((time @ params["head_modulation"])[:, None], 2, axis=-1)
        error = (_norm(x[:, self.text:], shift, scale) @ params["head"]).astype(jnp.float32) - batch["target"]
        return jnp.square(error).mean()

    def double(self, mesh, time, streams: dict, w: dict) -> dict:
        """One layer of two streams [B, L, D], which attend to each other."""
        streams = {stream: rows(x) for stream, x in streams.items()}
        made = {stream: jnp.split(_linear(time, w, f"{stream}_modulation")[:, None], 6, axis=-1) for stream in STREAMS}
        qkv = [self.qkv(_norm(x, *made[stream][:2]), w, stream) for stream, x in streams.items()]
        a = self.attend(mesh, *(jnp.concatenate(parts, axis=1) for parts in zip(*qkv)))
        parts = dict(zip(STREAMS, jnp.split(a, [self.text], axis=1)))
        for stream, x in streams.items():
            gate, shift, scale, gate2 = made[stream][2:]
            x = x + gate * _linear(parts[stream], w, f"{stream}_out")
            up = jax.nn.gelu(_linear(_norm(x, shift, scale), w, f"{stream}_up"))
            streams[stream] = x + gate2 * _linear(up, w, f"{stream}_down")
        return streams

    def single(self, mesh, time, x, w: dict):
        """One layer of one stream, x [B, L, D]; its MLP is made again whatever is kept."""
        x = rows(x)
        shift, scale, gate = jnp.split(_linear(time, w, "single_modulation")[:, None], 3, axis=-1)
        h = _norm(x, shift, scale)
        a = checkpoint_name(self.attend(mesh, *self.qkv(h, w, "single")), "attention")

        @jax.checkpoint
        def rest(h, a, x, w):
            up = jax.nn.gelu(_linear(h, w, "single_up"))
            return x + gate * _linear(jnp.concatenate([a, up], axis=-1), w, "single_out")

        return rest(h, a, x, w)

    def qkv(self, h, w: dict, kind: str):
        """Queries, keys and values [B, L, n, d]; the first two normalised."""
        whole = checkpoint_name(_linear(h, w, f"{kind}_qkv"), "qkv")
        q, k, v = jnp.moveaxis(whole.reshape(*h.shape[:2], 3, self.heads, -1), 2, 0)
        return *(rms(y, scale) for y, scale in zip((q, k), w[f"{kind}_norm"])), v

    def attend(self, mesh, q, k, v):
        """Attention of all tokens to all: q [B, L, n, d] -> [B, L, n d]."""
        each = kernels.make_attend(False, self.length, self.length, self.heads, (self.tile, self.tile), fused=True)
        q, k, v = (jnp.swapaxes(y, 1, 2) for y in (rotate(q), rotate(k), v))
        a = jax.shard_map(each, mesh=mesh, in_specs=(P(ROWS),) * 3, out_specs=P(ROWS), check_vma=False)(q, k, v)
        return jnp.swapaxes(a, 1, 2).reshape(len(q), self.length, -1)


def _linear(x, w: dict, name: str):
    return x @ w[name] + w[f"{name}_bias"]


def _norm(x, shift, scale):
    """LayerNorm without parameters, moved by the timestep, in bfloat16 as published."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift
