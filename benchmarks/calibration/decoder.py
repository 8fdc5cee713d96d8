"""Replica of MaxText's decoder: the same shapes, sharding and rematerialisation, and nothing else of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from benchmarks.calibration import kernels

ROWS = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """One published run's model and step."""

    dim: int
    layers: int
    heads: int
    ffn: int
    vocab: int
    length: int  # tokens of a sample
    head_dim: int = 128
    kv_heads: int = 0  # 0: as many as heads
    gated: bool = False
    activation: str = "silu"  # by its name in jax.nn
    parallel: bool = False  # attention and MLP read the same norm
    tied: bool = True  # the head is the embedding
    one_hot: bool = True  # the embedding is looked up by a product
    rotary: bool = True
    remat: str = "full"  # full, dots, or names of arrays joined by "+"
    offload: bool = False  # the named arrays go to the host
    moment: str = "float32"  # Adam's first moment
    tile: int = 512
    fused: bool = False

    @property
    def keys(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    def shapes(self) -> dict[str, tuple[tuple[int, ...], P]]:
        """{parameter: (shape, sharding)}; those of layers are stacked."""
        wide, keys = self.heads * self.head_dim, self.keys * self.head_dim
        into, out = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")
        n, d = self.layers, self.dim
        found = {"query": ((n, d, wide), into), "key": ((n, d, keys), into), "value": ((n, d, keys), into),
                 "out": ((n, wide, d), out), "up": ((n, d, self.ffn), into), "down": ((n, self.ffn, d), out),
                 "norm": ((n, 2, d), P()), "last_norm": ((d,), P()),
                 "embedding": ((self.vocab, d), P("tensor", "fsdp"))}
        if self.gated:
            found["gate"] = (n, d, self.ffn), into
        if not self.tied:
            found["head"] = (self.vocab, d), P("tensor", "fsdp")
        return found

    def flops(self) -> dict[str, float]:
        """FLOP of a sample as MaxText counts them: six per weight and token, half of all pairs."""
        weights = sum(_size(shape) for shape, _ in self.shapes().values())
        pairs = self.length**2 * self.layers * self.heads * self.head_dim
        return {"weights": 6.0 * weights * self.length, "self_attention": 6.0 * pairs}

    def batch(self, samples: int) -> dict[str, tuple[tuple[int, ...], str, P]]:
        """{array: (shape, dtype, sharding)} of a batch."""
        return {"tokens": ((samples, self.length + 1), "int32", P(ROWS))}

    def loss(self, params: dict, batch: dict, mesh):
        """Computes the mean cross-entropy of the next token."""
        tokens, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        table = _bf16(params["embedding"], P("tensor", "fsdp"))
        x = jax.nn.one_hot(tokens, self.vocab, dtype=jnp.bfloat16) @ table if self.one_hot else table[tokens]
        stacked = {name: w for name, w in params.items() if name not in ("embedding", "head", "last_norm")}
        layer = jax.checkpoint(functools.partial(self.layer, mesh), policy=self.policy(), prevent_cse=False)
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), rows(x), stacked)
        x = _norm(x, params["last_norm"])
        logits = x @ (table if self.tied else _bf16(params["head"], P("tensor", "fsdp"))).T
        logits = jax.lax.with_sharding_constraint(logits, P(ROWS, None, "tensor")).astype(jnp.float32)
        chosen = jnp.where(jnp.arange(self.vocab) == targets[..., None], logits, 0).sum(-1)
        return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()

    def layer(self, mesh, x, w):
        """One layer, x [B, L, D]."""
        x = checkpoint_name(rows(x), "layer_input")
        into, out = P("fsdp", "tensor"), P("tensor", "fsdp")
        h = _norm(x, w["norm"][0])
        q, k, v = (checkpoint_name(self.split(h @ _bf16(w[name], into)), name) for name in ("query", "key", "value"))
        if self.rotary:
            q, k = _rotate(q), _rotate(k)
        a = checkpoint_name(self.attend(mesh, q, k, v), "context")
        a = checkpoint_name(rows(a @ _bf16(w["out"], out)), "out")
        if not self.parallel:
            x, h = x + a, _norm(x + a, w["norm"][1])
        up = checkpoint_name(h @ _bf16(w["up"], into), "up")
        activate = getattr(jax.nn, self.activation)
        up = activate(h @ _bf16(w["gate"], into)) * up if self.gated else activate(up)
        down = rows(up @ _bf16(w["down"], out))
        return x + down + a if self.parallel else x + down

    def attend(self, mesh, q, k, v):
        """Attention over the mesh: q [B, L, n, d] -> [B, L, n d]."""
        shards = mesh.shape["tensor"]
        each = kernels.make_attend(True, self.length, self.length, self.heads // shards, (self.tile, self.tile),
                                   fused=self.fused)
        spec = P(ROWS, "tensor")
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        a = jax.shard_map(each, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)(q, k, v)
        return jnp.swapaxes(a, 1, 2).reshape(len(q), self.length, -1)

    def split(self, x):
        """[B, L, n d] -> [B, L, n, d]."""
        return x.reshape(*x.shape[:2], -1, self.head_dim)

    def policy(self):
        """What the backward pass finds of a layer."""
        policies = jax.checkpoint_policies
        if self.remat == "full":
            return None
        if self.remat == "dots":
            return policies.checkpoint_dots_with_no_batch_dims
        names = self.remat.split("+")
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[] if self.offload else names,
            names_which_can_be_offloaded=names if self.offload else [],
            offload_src="device", offload_dst="pinned_host")


def rows(x):
    """Keeps activations where their rows are, as MaxText does."""
    return jax.lax.with_sharding_constraint(x, P(ROWS, None, "tensor"))


def _bf16(w, spec: P):
    """Weights in bfloat16, cast before they are gathered."""
    return jax.lax.with_sharding_constraint(w.astype(jnp.bfloat16), spec)


def _norm(x, scale):
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)
    return (wide * scale).astype(jnp.bfloat16)


def _rotate(x):
    """Rotary positions, x [B, L, n, d]."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = first * jnp.cos(angles) - second * jnp.sin(angles), second * jnp.cos(angles) + first * jnp.sin(angles)
    return jnp.concatenate(turned, -1).astype(x.dtype)


def _size(shape: tuple[int, ...]) -> int:
    return functools.reduce(lambda a, b: a * b, shape, 1)
