"""Pairs of (query, key) tiles that attention computes, and the visibility inside them, as arrays for a kernel.

Every pair of tiles in which something is visible is one step of a kernel; there is no step for any other. Inside a pair
queries and keys come in segments. A key's `code` has one bit set, that of its segment among the segments of its tile. A
query's `word` for that tile has the bits of the segments that the query sees. The query sees the key where the two
share a bit, so that no mask over pairs of tokens is ever held. A key that a call masks out loses its bit, and a call
may also mask pairs of segments.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PADDING = -1  # the segment of padding: no query sees it
SKIP, FULL, MASKED = 0, 1, 2  # kinds of pairs of tiles: nothing is visible, everything, some
# Flags of a step: whether it is the first or last visit of its tile on the side that the grid goes along (rows of tiles
# in the forward pass, columns in the backward pass), and on the other side, across.
FIRST, LAST, FIRST_ACROSS, LAST_ACROSS = 1, 2, 4, 8
BITS = 31  # bits of an int32 that are used; its sign is left alone


class Visible(NamedTuple):
    """Visibility inside the listed pairs in one call. G is 1, or the number of samples in the batch."""

    kinds: jax.Array  # int32 [G, P]
    words: jax.Array  # int32 [tiles of keys, W, Lq]
    codes: jax.Array  # int32 [G, W, Lk]


class Tiles:
    """The P listed pairs of tiles under bool `seen` [segments of queries, segments of keys].

    queries [Lq] and keys [Lk] name each token's segment; both are whole numbers of tiles of `tile` (queries, keys)
    tokens. Keys may be PADDING.
    """

    def __init__(self, seen: np.ndarray, queries: np.ndarray, keys: np.ndarray, tile: tuple[int, int]):
        self.seen, self.queries, self.keys, self.tile = seen, queries, keys, tile
        self._rows, columns = (segments.reshape(-1, side) for segments, side in zip((queries, keys), tile, strict=True))
        present = [np.unique(column[column != PADDING]) for column in columns]
        self.words = -(-max(1, *map(len, present)) // BITS)  # per query and tile of keys
        self._segments = np.full((len(columns), self.words * BITS), PADDING)  # the segment of each bit, by tile of keys
        self._codes = np.zeros((self.words, len(keys)), np.int32)
        for column, found in enumerate(present):
            self._segments[column, :len(found)] = found
            for bit, segment in enumerate(found):
                self._codes[bit // BITS, column * tile[1]:][:tile[1]] |= np.int32(
                    (columns[column] == segment) * (1 << bit % BITS))
        self._padded = (columns == PADDING).any(axis=1)
        listed = self._kinds(seen) != SKIP
        self.computed = int(listed.sum())
        # A tile that nobody sees, or that sees nobody, gets one empty step, which writes zeros.
        listed[0] |= ~listed.any(axis=0)
        listed[:, 0] |= ~listed.any(axis=1)
        self.rows, self.columns = (x.astype(np.int32) for x in np.nonzero(listed))  # tiles of queries, of keys; [P]

    @functools.cached_property
    def by_column(self) -> np.ndarray:
        """Indices of the pairs in the order of the backward pass, column by column; int [P]."""
        return np.lexsort((self.rows, self.columns))

    def _kinds(self, seen):
        """Finds the kind of every pair of tiles: int32 [tiles of queries, tiles of keys]; `seen` may be traced."""
        real = self._segments != PADDING
        sees = seen[:, self._segments] & real  # [segments of queries, tiles of keys, bits]
        some, every = sees.any(axis=-1), (sees == real).all(axis=-1) & ~self._padded
        inside = [np.unique(row) for row in self._rows]
        backend = jnp if isinstance(seen, jax.Array) else np
        some = backend.stack([some[row].any(axis=0) for row in inside])
        every = backend.stack([every[row].all(axis=0) for row in inside])
        return backend.where(every, FULL, backend.where(some, MASKED, SKIP)).astype(np.int32)

    def visible(self, valid=None, segment_mask=None) -> Visible:
        """Computes the visibility of one call.

        valid: bool [B, Lk], the keys that remain; segment_mask: bool like `seen`, the pairs of segments that remain.
        """
        seen = self.seen if segment_mask is None else segment_mask & self.seen
        kinds, codes = self._kinds(seen)[None, self.rows, self.columns], self._codes[None]
        if valid is not None:
            of_tile = valid.reshape(len(valid), -1, self.tile[1])
            some, every = (found[:, self.columns] for found in (of_tile.any(axis=-1), of_tile.all(axis=-1)))
            kinds = jnp.where(some, jnp.where(every | (kinds == SKIP), kinds, MASKED), SKIP)
            codes = jnp.where(valid[:, None], codes, 0)
        return Visible(kinds, self._words(seen), codes)

    def pieces(self, most: int) -> list["Tiles"]:
        """Splits the queries into stretches of about equal length and at most `most` tokens (or one tile)."""
        count = -(-len(self._rows) // max(1, most // self.tile[0]))
        return [Tiles(self.seen, rows.reshape(-1), self.keys, self.tile) for rows in np.array_split(self._rows, count)]

    def _words(self, seen):
        """Packs the segments that each query sees into bits: int32 [tiles of keys, W, Lq]."""
        bits = (seen[:, self._segments] & (self._segments != PADDING)).reshape(len(seen), -1, self.words, BITS)
        words = (bits.astype(np.int32) << np.arange(BITS, dtype=np.int32)).sum(axis=-1, dtype=np.int32)
        return words.transpose(1, 2, 0)[:, :, self.queries]


def edges(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Flags the first and last visits of tiles among steps: int32 [P]; pairs with the same `along` stand together."""
    found = np.zeros(len(along), np.int32)
    for side, flags in ((along, (FIRST, LAST)), (across, (FIRST_ACROSS, LAST_ACROSS))):
        for order, flag in zip((slice(None), slice(None, None, -1)), flags, strict=True):
            _, visits = np.unique(side[order], return_index=True)
            found[order][visits] |= flag
    return found
