"""Dense attention under a boolean mask. Every other kernel is tested against it."""

import jax
import jax.numpy as jnp

from world_model.attention.tokens import Sequence, segment_of_token
from world_model.attention.visibility import Table, dense_mask

# Finite, so that a query without any valid key stays finite; exp(NEGATIVE - max) is exactly 0 otherwise.
NEGATIVE = -1e30


def make_attend(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0):
    """Makes an attend function (see `world_model.attention.make_attend`) that computes even invisible products."""
    static = dense_mask(table, queries, keys, window_frames)
    rows, columns = segment_of_token(queries), segment_of_token(keys)

    def attend(q, k, v, key_valid=None, segment_mask=None):
        mask = static if segment_mask is None else static & segment_mask[rows][:, columns]
        logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        logits = jnp.where(mask, logits, 2 * NEGATIVE)
        if key_valid is not None:
            logits = jnp.where(jnp.logical_and(mask, ~key_valid[:, None, None, :]), NEGATIVE, logits)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return jnp.einsum("bnqk,bknd->bqnd", weights, v)

    return attend
