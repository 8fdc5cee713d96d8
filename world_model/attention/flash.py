"""Attention over the visibility table by our kernel for TPUs (flash_kernel.py), on one device or a mesh.

Where training samples block size and window, a mask of segments comes with each call. From it the step computes which
listed pairs of tiles are empty, full or masked; nothing is compiled again.
"""

import jax.numpy as jnp

from world_model.attention import flash_kernel, ring
from world_model.attention.packing import PackedOrder, choose_tile, make_tiles
from world_model.attention.tiles import Tiles
from world_model.attention.tokens import Sequence
from world_model.attention.visibility import Table
from world_model.parallel import sharding
from world_model.parallel.remat import ATTENDED


def make_attend(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0, *,
                tile: int | None = None, interpret: bool = False):
    """Makes an attend function; see `world_model.attention.make_attend`.

    tile: tokens on a side (default: `choose_tile`); interpret: runs the kernel on any platform, slowly, for tests.
    """
    tile = tile or choose_tile(queries, keys)
    packed_q, packed_k = PackedOrder(queries, tile), PackedOrder(keys, tile)
    attend_packed = make_attend_packed(table, packed_q, packed_k, window_frames, interpret=interpret)

    def attend(q, k, v, key_valid=None, segment_mask=None):
        valid = None if key_valid is None else packed_k.pack(key_valid)
        return packed_q.unpack(
            attend_packed(packed_q.pack(q), packed_k.pack(k), packed_k.pack(v), valid, segment_mask))

    return attend


def make_attend_packed(table: Table, queries: PackedOrder, keys: PackedOrder, window_frames: int = 0, *,
                       interpret: bool = False):
    """Makes the attend function of `make_attend` for tokens that already stand in packed order."""
    tiles = make_tiles(table, queries, keys, window_frames)
    attend_ring = ring.make_ring(tiles.seen, tiles.queries, tiles.keys)

    def attend(q, k, v, key_valid=None, segment_mask=None):
        if ring.needed(q.shape[2]):
            return attend_ring(q, k, v, key_valid, segment_mask)
        return sharded(tiles, q, k, v, key_valid, segment_mask, name=ATTENDED, interpret=interpret)

    return attend


def sharded(tiles: Tiles, q, k, v, valid=None, segment_mask=None, *, name: str | None = None, interpret: bool = False,
            heads: str = "attention_heads", queries: str | None = None):
    """Runs the kernel over the mesh: q [B, Lq, n, d] over k, v [B, Lk, n, d] -> [B, Lq, n, d].

    Each device computes its rows of the batch, its heads and, where `queries` names a logical axis, its queries;
    `tiles` then describes one device's queries.
    """
    def attend_local(q, k, v, valid, segment_mask):
        flat = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
        return flash_kernel.attend(tiles, name, interpret, *flat, valid, segment_mask).reshape(q.shape)

    over_queries, over_keys = ("batch", heads, None, queries), ("batch", heads)
    attend_local = sharding.on_each_device(
        attend_local, (over_queries, over_keys, over_keys, ("batch",), ()), over_queries)
    q, k, v = (jnp.moveaxis(x, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v))  # [B, n, d, L]
    return jnp.moveaxis(attend_local(q, k, v, valid, segment_mask), 3, 1)
