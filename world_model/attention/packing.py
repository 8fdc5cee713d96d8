"""The order in which the TPU's attention kernel would have tokens stand.

The kernel works tile by tile and leaves out tiles in which nothing is visible. Segments are reordered so that those of
the same block stand together, and each such group is padded to whole tiles: but for padding, almost no tile is then
partly masked (the 14B example computes 1.03 times its visible pairs). Tiles are as large as padding allows.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np

from world_model.attention.tiles import NOBODY, Tiles
from world_model.attention.tokens import CLEAN_GROUPS, Sequence, merge_ranges, segment_of_token
from world_model.attention.visibility import Table, sees

LANES = 128  # a tile is a multiple of this
LARGEST_TILE = 1024  # scores of a tile and their gradients must fit the vector memory
TILE_OVERHEAD = 96  # tokens: what a tile costs beside its products, per side, in units of work


class PackedOrder:
    """Segments regrouped and padded: groups of one role and block, clean ones first, each a whole number of tiles."""

    def __init__(self, sequence: Sequence, tile: int):
        self.sequence, self.tile = sequence, tile
        ordered = sorted(sequence, key=_group)
        self.groups = [list(group) for _, group in itertools.groupby(ordered, key=_group)]

    @functools.cached_property
    def order(self) -> np.ndarray:
        """int32 [places]: the token in each place, -1 where it is padding."""
        rows = [np.concatenate([*(np.arange(s.start, s.stop) for s in group), np.full(self.padding(group), -1)])
                for group in self.groups]
        return np.concatenate(rows).astype(np.int32)

    @functools.cached_property
    def segment(self) -> np.ndarray:
        """int32 [places]: each token's index in the sequence of segments, NOBODY where it is padding."""
        return np.where(self.order < 0, NOBODY, segment_of_token(self.sequence)[self.order]).astype(np.int32)

    def padding(self, group: list) -> int:
        """Places that fill the group's last tile."""
        return -sum(s.length for s in group) % self.tile

    def pack(self, x):
        """[B, L, ...] -> [B, places, ...], zeros for padding."""
        pieces = []
        for group in self.groups:
            pieces += [x[:, start:stop] for start, stop in _ranges(group)]
            if padding := self.padding(group):
                pieces.append(jnp.zeros((x.shape[0], padding, *x.shape[2:]), x.dtype))
        return jnp.concatenate(pieces, axis=1)

    def unpack(self, x):
        """[B, places, ...] -> [B, L, ...]."""
        pieces, start = {}, 0
        for group in self.groups:
            for first, last in _ranges(group):
                pieces[first] = x[:, start:start + last - first]
                start += last - first
            start += self.padding(group)
        return jnp.concatenate([pieces[start] for start in sorted(pieces)], axis=1)


def _ranges(group: list) -> tuple[tuple[int, int], ...]:
    return merge_ranges([(s.start, s.stop) for s in group])


def _group(segment) -> tuple[bool, int]:
    return segment.group not in CLEAN_GROUPS, segment.block


def make_tiles(table: Table, queries: PackedOrder, keys: PackedOrder, window_frames: int) -> Tiles:
    """A visibility table as the kernel reads it."""
    seen = np.array([[sees(table, q, k, window_frames) for k in keys.sequence] for q in queries.sequence], bool)
    # A padding query sees what its neighbour does, so that its tile is no more masked than theirs.
    places = np.arange(len(queries.segment))
    neighbours = queries.segment[np.maximum.accumulate(np.where(queries.segment == NOBODY, 0, places))]
    return Tiles(seen, neighbours, keys.segment, (queries.tile, keys.tile))


def choose_tile(queries: Sequence, keys: Sequence) -> int:
    """The side of tiles of which each group of segments is to be a whole number."""
    groups = itertools.chain(*(PackedOrder(sequence, LANES).groups for sequence in (queries, keys)))
    return cheapest_tile([sum(segment.length for segment in group) for group in groups])


def cheapest_tile(lengths: list[int]) -> int:
    """The side of tiles that costs least over stretches of so many tokens: padded, plus an overhead for every tile."""
    cost = lambda tile: sum(-(-tokens // tile) * (tile + TILE_OVERHEAD) for tokens in lengths)
    return min(range(LANES, LARGEST_TILE + 1, LANES), key=lambda tile: (cost(tile), -tile))
