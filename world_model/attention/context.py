"""Cross-attention: every query over all of a short context (text, image features), no mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from world_model.attention import flash
from world_model.attention.blockwise import dense
from world_model.attention.packing import cheapest_tile
from world_model.attention.tiles import NOBODY, Tiles


def get_attend_context(name: str):
    """attend(q [B, Lq, n, d], k [B, Lk, n, d], v [B, Lk, n, d]) -> [B, Lq, n, d] for the kernel of self-attention
    of that name. `flash` keeps the scores on chip; written out, they cost a TPU 4% of the 14B's
    block by the compiler's estimate."""
    return fused if name == "flash" else dense


def fused(q, k, v, interpret: bool = False):
    """The kernel of self-attention; queries and context are padded to whole tiles. Nothing is kept for the backward
    pass: making it again costs less than the memory."""
    queries, keys = q.shape[1], k.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape["context"]
    tiles = _tiles(-(-queries // shards), keys)
    q = _pad(q, len(tiles.queries) * shards)
    k, v = (_pad(x, len(tiles.keys)) for x in (k, v))
    return flash.sharded(tiles, q, k, v, interpret=interpret, heads="heads", queries="tokens")[:, :queries]


@functools.cache
def _tiles(queries: int, keys: int) -> Tiles:
    """Of so many queries and keys, padded: one segment each."""
    tile = cheapest_tile([queries]), cheapest_tile([keys])
    places_q, places_k = (-(-tokens // side) * side for tokens, side in zip((queries, keys), tile, strict=True))
    segment_k = np.where(np.arange(places_k) < keys, 0, NOBODY)
    return Tiles(np.ones((1, 1), bool), np.zeros(places_q, int), segment_k, tile)


def _pad(x, places: int):
    return jnp.pad(x, ((0, 0), (0, places - x.shape[1]), (0, 0), (0, 0)))
