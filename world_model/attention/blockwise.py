"""Attention span by span: each set of queries meets exactly the keys it may see, so no masked product is computed.

CPU and GPU use it. A span is dense, so any fused kernel can compute it (attention/cudnn.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from world_model.attention.reference import NEGATIVE
from world_model.attention.tokens import Sequence, segment_of_token
from world_model.attention.visibility import Span, Table, make_spans
from world_model.parallel.remat import ATTENDED

SPAN_TOKENS = 128  # least number of queries in a masked span: fewer waste a matrix unit, and take long to compile


def make_attend(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0,
                attention: Callable | None = None):
    """Makes an attend function; see `world_model.attention.make_attend`. attention: computes one span, `dense` if None.

    Queries, keys and values are cut into pieces once, and spans are joined from pieces: the backward pass then adds
    gradients piece by piece, where slices would pad each to full length. Spans of the same shape are folded into the
    batch and computed together.
    """
    spans = make_spans(table, queries, keys, window_frames, SPAN_TOKENS)
    query_cuts, key_cuts = _cuts([s.queries for s in spans]), _cuts([s.keys for s in spans])
    same_shape: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        same_shape.setdefault((_count(span.queries), _count(span.keys)), []).append(span)

    rows, columns = segment_of_token(queries), segment_of_token(keys)
    attention = attention or (lambda *span: checkpoint_name(dense(*span), ATTENDED))

    def attend(q, k, v, key_valid=None, segment_mask=None):
        batch = q.shape[0]
        q, k, v = _split(q, query_cuts), _split(k, key_cuts), _split(v, key_cuts)
        valid = None if key_valid is None else _split(key_valid, key_cuts)
        out = {}
        for group in same_shape.values():
            queries, keys = [span.queries for span in group], [span.keys for span in group]
            result = attention(
                _join_all(q, queries), _join_all(k, keys), _join_all(v, keys),
                None if valid is None else _join_all(valid, keys),
                None if segment_mask is None else jnp.repeat(
                    _pair_masks(segment_mask, group, rows, columns), batch, axis=0))
            for span, part in zip(group, jnp.split(result, len(group)), strict=True):
                inside = [p for p in q if any(start <= p[0] and p[1] <= stop for start, stop in span.queries)]
                lengths = [stop - start for start, stop in inside]
                out |= dict(zip(inside, jax.lax.split(part, lengths, axis=1), strict=True))
        return jnp.concatenate([out[piece] for piece in sorted(out)], axis=1)

    return attend


def _pair_masks(segment_mask, spans: list[Span], rows: np.ndarray, columns: np.ndarray):
    """Expands the mask of segments to the tokens of spans: bool [spans, Lq, Lk].

    Lq is 1 where the queries of every span are one segment. rows and columns name each token's segment.
    """
    single = all(len(span.rows) == 1 for span in spans)
    return jnp.stack([segment_mask[np.array(span.rows) if single else _take(rows, span.queries)]
                      [:, _take(columns, span.keys)] for span in spans])


def _take(segments: np.ndarray, ranges) -> np.ndarray:
    return np.concatenate([segments[start:stop] for start, stop in ranges])


def _count(ranges) -> int:
    return sum(stop - start for start, stop in ranges)


def _cuts(all_ranges) -> list[int]:
    """Returns the sorted bounds of the pieces of which every range is made."""
    return sorted({bound for ranges in all_ranges for pair in ranges for bound in pair} | {0})


def _split(x, cuts: list[int]) -> dict[tuple[int, int], jax.Array]:
    """Splits axis 1 into pieces, by (start, stop)."""
    bounds = cuts if cuts[-1] == x.shape[1] else [*cuts, x.shape[1]]
    pairs = list(zip(bounds[:-1], bounds[1:], strict=True))
    return dict(zip(pairs, jax.lax.split(x, [stop - start for start, stop in pairs], axis=1), strict=True))


def _join_all(pieces: dict, spans: list) -> jax.Array:
    """Joins the pieces of each of several spans' ranges, and the spans along the batch."""
    return jnp.concatenate([_join(pieces, ranges) for ranges in spans])


def _join(pieces: dict, ranges) -> jax.Array:
    found = [x for (start, stop), x in pieces.items() if any(a <= start and stop <= b for a, b in ranges)]
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=1)


def dense(q, k, v, key_valid=None, pairs=None):
    """Computes plain attention of all q over all k, or over the `pairs` bool [B, Lq or 1, Lk]; softmax in float32."""
    if k.shape[1] == 1:  # softmax over one key is 1
        return jnp.broadcast_to(v, q.shape)
    logits = jnp.einsum("bqnd,bknd->bnqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if key_valid is not None:
        logits = jnp.where(key_valid[:, None, None, :], logits, NEGATIVE)
    if pairs is not None:
        logits = jnp.where(pairs[:, None], logits, NEGATIVE)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)
