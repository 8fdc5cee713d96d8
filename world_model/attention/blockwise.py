"""Attention span by span: each set of queries meets exactly the keys it may see, so no masked product is computed.

The path for CPU and GPU. A span is dense, so any fused kernel serves it (cuDNN flash attention on a GPU).
"""

import jax
import jax.numpy as jnp

from world_model.attention.reference import NEGATIVE
from world_model.tokens import Sequence
from world_model.visibility import Span, Table, make_spans


def make_attend(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0):
    """See `world_model.attention.make_attend`. Spans of the same shape are computed together, folded into the batch."""
    same_shape: dict[tuple[int, int], list[Span]] = {}
    for span in make_spans(table, queries, keys, window_frames):
        same_shape.setdefault((_count(span.queries), _count(span.keys)), []).append(span)

    def attend(q, k, v, key_valid=None):
        pieces = {}
        for spans in same_shape.values():
            fold = lambda x, side, spans=spans: jnp.concatenate([_take(x, getattr(s, side)) for s in spans])
            valid = None if key_valid is None else fold(key_valid, "keys")
            out = dense(fold(q, "queries"), fold(k, "keys"), fold(v, "keys"), valid)
            for span, part in zip(spans, jnp.split(out, len(spans)), strict=True):
                pieces |= dict(zip(span.queries, _split(part, span.queries), strict=True))
        return jnp.concatenate([pieces[r] for r in sorted(pieces)], axis=1)

    return attend


def _count(ranges) -> int:
    return sum(stop - start for start, stop in ranges)


def dense(q, k, v, key_valid=None):
    """Plain attention of all q over all k; softmax in float32."""
    if k.shape[1] == 1:  # softmax over one key is 1
        return jnp.broadcast_to(v, q.shape)
    logits = jnp.einsum("bqnd,bknd->bnqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if key_valid is not None:
        logits = jnp.where(key_valid[:, None, None, :], logits, NEGATIVE)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)


def _take(x, ranges):
    pieces = [jax.lax.slice_in_dim(x, start, stop, axis=1) for start, stop in ranges]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)


def _split(x, ranges):
    if len(ranges) == 1:
        return [x]
    bounds, total = [], 0
    for start, stop in ranges[:-1]:
        total += stop - start
        bounds.append(total)
    return jnp.split(x, bounds, axis=1)
