"""Timestep rows: modulation depends on the timestep, not on the token, so it is computed once per row and broadcast."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

MATMUL_EXPAND = 64  # tokens a row, on average, from which on rows are expanded by a product


@dataclasses.dataclass(frozen=True)
class TimestepRows:
    """How timestep rows cover the tokens: in order, `count` rows of `tokens` tokens each."""

    parts: tuple[tuple[int, int], ...]  # (count, tokens per row)
    order: np.ndarray | None = None  # int32 [places]: where the tokens stand otherwise, the one in each place or -1

    def expand(self, rows):
        """[B, sum of counts, D] -> [B, L, D].

        Where rows are long it is a product with a table of ones, exact and cheap: broadcasts to be joined, and on the
        way back sums over slices, take a TPU a fifth of its time.
        """
        counts, lengths = zip(*self.parts, strict=True)
        if self.order is not None or sum(c * n for c, n in self.parts) >= MATMUL_EXPAND * sum(counts):
            of_token = np.repeat(np.arange(sum(counts)), np.repeat(lengths, counts))
            if self.order is not None:
                of_token = np.where(self.order < 0, -1, of_token[self.order])
            return jnp.asarray(of_token[:, None] == np.arange(sum(counts)), rows.dtype) @ rows
        pieces, start = [], 0
        for tokens, parts in itertools.groupby(self.parts, key=lambda part: part[1]):
            count = sum(c for c, _ in parts)
            piece = rows[:, start:start + count]
            pieces.append(piece if tokens == 1 else jnp.repeat(piece, tokens, axis=1))
            start += count
        return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)
