"""Attention span by span: each set of queries meets exactly the keys it may see, so no masked product is computed.

The path for CPU and GPU. A span is dense, so any fused kernel serves it (cuDNN flash attention on a GPU).
"""

import jax
import jax.numpy as jnp

from world_model.attention.reference import NEGATIVE
from world_model.tokens import Sequence
from world_model.visibility import Table, make_spans


def make_attend(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0):
    """See `world_model.attention.make_attend`."""
    spans = make_spans(table, queries, keys, window_frames)

    def attend(q, k, v, key_valid=None):
        pieces = {}
        for span in spans:
            valid = None if key_valid is None else _take(key_valid, span.keys)
            out = dense(_take(q, span.queries), _take(k, span.keys), _take(v, span.keys), valid)
            for (start, stop), piece in zip(span.queries, _split(out, span.queries), strict=True):
                pieces[start, stop] = piece
        return jnp.concatenate([pieces[r] for r in sorted(pieces)], axis=1)

    return attend


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
