"""Cross-attention: every query over all of a short context (text, image features), no mask."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from world_model.attention import splash
from world_model.attention.blockwise import dense

QUERY_TILE = 1024  # with a context of 512 its scores take 2 MiB of the vector memory


def get_attend_context(name: str):
    """attend(q [B, Lq, n, d], k [B, Lk, n, d], v [B, Lk, n, d]) -> [B, Lq, n, d] for the kernel of self-attention
    of that name. `splash` keeps the scores on chip; written out, they cost a TPU 4% of the 14B's
    block by the compiler's estimate."""
    return fused if name == "splash" else dense


def fused(q, k, v, interpret: bool = False):
    """JAX's splash kernel without a mask; queries and context are padded to whole tiles. Nothing is kept for the
    backward pass: making it again costs less than the memory."""
    queries, keys = q.shape[1], k.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape["context"]
    tile = min(QUERY_TILE, _ceil(-(-queries // shards)))
    q = _pad(q * q.shape[-1] ** -0.5, -queries % (tile * shards))
    k, v = (_pad(x, -keys % splash.LANES) for x in (k, v))
    made = _made(q.shape[1] // shards, k.shape[1], tile, interpret)
    valid = None if k.shape[1] == keys else jnp.broadcast_to(jnp.arange(k.shape[1]) < keys, k.shape[:2])
    with jax.named_scope(f"pairs_{q.shape[1] * k.shape[1]}"):
        out = splash.sharded(made, *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)), valid, "heads", "tokens")
    return jnp.swapaxes(out, 1, 2)[:, :queries]


def _made(queries: int, keys: int, tile: int, interpret: bool):
    return kernel.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((queries, keys))]), head_shards=1, q_seq_shards=1, interpret=interpret,
        block_sizes=splash.block_sizes(tile, keys))


def _ceil(tokens: int) -> int:
    return -(-tokens // splash.LANES) * splash.LANES


def _pad(x, tokens: int):
    return jnp.pad(x, ((0, 0), (0, tokens), (0, 0), (0, 0))) if tokens else x
