"""Attention span by span: each set of queries meets exactly the keys it may see, so no masked product is computed.

The path for CPU and GPU. A span is dense, so any fused kernel serves it (attention/cudnn.py).
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

SPAN_TOKENS = 128  # queries that a masked span should have at least: fewer waste a matrix unit, and compile for long


def make_attend(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0,
                attention: Callable | None = None):
    """See `world_model.attention.make_attend`; attention: of one span, `dense` if None.

    Queries, keys and values are cut into pieces once, and spans joined from pieces: the backward pass then adds
    gradients piece by piece, where slices would pad each to full length. Spans of the same shape are computed
    together, folded into the batch.
    """
    spans = make_spans(table, queries, keys, window_frames, SPAN_TOKENS)
    query_cuts, key_cuts = _cuts([s.queries for s in spans]), _cuts([s.keys for s in spans])
    same_shape: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        same_shape.setdefault((_count(span.queries), _count(span.keys)), []).append(span)

    rows, columns = segment_of_token(queries), segment_of_token(keys)
    attention = attention or (lambda *span: checkpoint_name(dense(*span), ATTENDED))

    def attend(q, k, v, key_valid=None, drawn=None):
        batch = q.shape[0]
        q, k, v = _split(q, query_cuts), _split(k, key_cuts), _split(v, key_cuts)
        valid = None if key_valid is None else _split(key_valid, key_cuts)
        out = {}
        for group in same_shape.values():
            join = lambda pieces, side, group=group: jnp.concatenate(
                [_join(pieces, getattr(span, side)) for span in group])
            result = attention(
                join(q, "queries"), join(k, "keys"), join(v, "keys"), None if valid is None else join(valid, "keys"),
                None if drawn is None else jnp.repeat(_drawn_pairs(drawn, group, rows, columns), batch, axis=0))
            for span, part in zip(group, jnp.split(result, len(group)), strict=True):
                inside = [p for p in q if any(start <= p[0] and p[1] <= stop for start, stop in span.queries)]
                lengths = [stop - start for start, stop in inside]
                out |= dict(zip(inside, jax.lax.split(part, lengths, axis=1), strict=True))
        return jnp.concatenate([out[piece] for piece in sorted(out)], axis=1)

    return attend


def _drawn_pairs(drawn, spans: list[Span], rows: np.ndarray, columns: np.ndarray):
    """bool [spans, Lq, Lk], Lq = 1 where each span's queries are one segment."""
    tokens = lambda segments, ranges: np.concatenate([segments[start:stop] for start, stop in ranges])
    single = all(len(span.rows) == 1 for span in spans)
    row = lambda span: np.array(span.rows) if single else tokens(rows, span.queries)
    return jnp.stack([drawn[row(span)][:, tokens(columns, span.keys)] for span in spans])


def _count(ranges) -> int:
    return sum(stop - start for start, stop in ranges)


def _cuts(all_ranges) -> list[int]:
    """Sorted bounds of the pieces of which every range is made."""
    return sorted({bound for ranges in all_ranges for pair in ranges for bound in pair} | {0})


def _split(x, cuts: list[int]) -> dict[tuple[int, int], jax.Array]:
    """Pieces of axis 1 by (start, stop)."""
    bounds = cuts if cuts[-1] == x.shape[1] else [*cuts, x.shape[1]]
    pairs = list(zip(bounds[:-1], bounds[1:], strict=True))
    return dict(zip(pairs, jax.lax.split(x, [stop - start for start, stop in pairs], axis=1), strict=True))


def _join(pieces: dict, ranges) -> jax.Array:
    found = [x for (start, stop), x in pieces.items() if any(a <= start and stop <= b for a, b in ranges)]
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=1)


def dense(q, k, v, key_valid=None, pairs=None):
    """Plain attention of all q over all k, or the `pairs` bool [B, Lq or 1, Lk]; softmax in float32."""
    if k.shape[1] == 1:  # softmax over one key is 1
        return jnp.broadcast_to(v, q.shape)
    logits = jnp.einsum("bqnd,bknd->bnqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if key_valid is not None:
        logits = jnp.where(key_valid[:, None, None, :], logits, NEGATIVE)
    if pairs is not None:
        logits = jnp.where(pairs[:, None], logits, NEGATIVE)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)
