"""Cross-attention: every query attends to all of a short context (text, image features), without a mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from world_model.attention import cudnn, flash
from world_model.attention.blockwise import dense
from world_model.attention.packing import cheapest_tile
from world_model.attention.tiles import PADDING, Tiles


def get_attend_context(name: str):
    """Returns attend(q [B, Lq, n, d], k [B, Lk, n, d], v [B, Lk, n, d]) -> [B, Lq, n, d] for a self-attention kernel.

    `flash` and `cudnn` keep the scores on chip; written out, they cost a TPU 4% of a layer of the 14B by the compiler's
    estimate, and an H100 39 GB of traffic in two layers.
    """
    return {"flash": fused, "cudnn": cudnn.flash}.get(name, dense)


def fused(q, k, v, interpret: bool = False):
    """Runs the flash kernel over a context; queries and context are padded to whole tiles.

    Nothing is kept for the backward pass, because making it again costs less than the memory.
    """
    queries, keys = q.shape[1], k.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape["context"]
    tiles = _tiles(-(-queries // shards), keys)
    q = _pad(q, len(tiles.queries) * shards)
    k, v = (_pad(x, len(tiles.keys)) for x in (k, v))
    return flash.sharded(tiles, q, k, v, interpret=interpret, heads="heads", queries="tokens")[:, :queries]


@functools.cache
def _tiles(queries: int, keys: int) -> Tiles:
    """Makes the tiles of so many queries and keys, padded to whole tiles; each side is one segment."""
    tile = cheapest_tile([queries]), cheapest_tile([keys])
    length_q, length_k = (-(-tokens // side) * side for tokens, side in zip((queries, keys), tile, strict=True))
    segment_k = np.where(np.arange(length_k) < keys, 0, PADDING)
    return Tiles(np.ones((1, 1), bool), np.zeros(length_q, int), segment_k, tile)


def _pad(x, length: int):
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
