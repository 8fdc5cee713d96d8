"""Counting the work: matrix products of one training sample, by part.

Convention, stated wherever a figure stands: 2 FLOP per multiply-add; matrix products alone; attention over visible
pairs alone; backward = two products per forward product, but one where the input is frozen (no gradient with
respect to data or encoder features); tokens that no output depends on do not count; no recomputation.
"""

from typing import NamedTuple

from world_model.attention import visibility

# part -> [(forward FLOP per sample, whether the product's input is frozen)]
Parts = dict[str, list[tuple[float, bool]]]


class Work(NamedTuple):
    """What goes through the stack of layers: numbers of tokens, and of (query, key) pairs that attend."""

    tokens: int
    read: int  # tokens that heads read: the only queries of the last layer
    pairs: float  # with every token querying; a mean where what is visible is sampled
    pairs_read: float
    text: int
    image: int = 0


def training_flops(forward: Parts) -> dict[str, float]:
    """FLOP of forward and backward per sample by part."""
    return {part: sum(flops * (2 if frozen else 3) for flops, frozen in products)
            for part, products in forward.items()}


def trained(*products: tuple[float, int, int]) -> list[tuple[float, bool]]:
    """Products [m, k] x [k, n] whose input has a gradient."""
    return [(2.0 * m * k * n, False) for m, k, n in products]


def frozen(*products: tuple[float, int, int]) -> list[tuple[float, bool]]:
    """Products whose input is data."""
    return [(2.0 * m * k * n, True) for m, k, n in products]


def stack(work: Work, dim: int, ffn_dim: int, num_layers: int, heads_dim: int | None = None) -> Parts:
    """The products of the stack; heads_dim: width of all heads of self-attention, where it is not dim."""
    d, before, wide = dim, num_layers - 1, heads_dim or dim
    querying, queried = before * work.tokens + work.read, num_layers * work.tokens
    return {
        "self_attention_projections": trained((2 * querying, d, wide), (2 * queried, d, wide)),
        "self_attention": trained((2 * (before * work.pairs + work.pairs_read), wide, 1)),
        "cross_attention_projections": trained((2 * querying, d, d)),
        "cross_attention_context": trained((2 * num_layers * (work.text + work.image), d, d)),
        "cross_attention": trained((2 * querying, work.text + work.image, d)),
        "mlp": trained((2 * querying, d, ffn_dim)),
    }


def visible_pairs(table, queries, keys, window_frames: int = 0) -> int:
    """Number of (query token, key token) pairs that attend."""
    return sum(q.length * k.length for q in queries for k in keys
               if visibility.sees(table, q, k, window_frames))
