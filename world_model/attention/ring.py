"""Ring attention (arXiv 2310.01889), for tokens over the mesh axis `context` where its size does not divide the heads.

Every device keeps its stretch of queries. In each of as many turns as there are devices it attends to the keys and
values that it holds, under their part of the visibility table, adds them to a running softmax and passes them to its
neighbour. Where heads divide, tokens are exchanged for heads instead (all-to-all, sharding.RULES["attention_heads"]),
and the named kernel skips masked products; a ring computes them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from world_model.attention.reference import NEGATIVE
from world_model.attention.tiles import PADDING
from world_model.attention.tokens import Sequence, segment_of_token
from world_model.attention.visibility import Table, sees
from world_model.parallel import sharding


def needed(heads: int) -> bool:
    """Whether attention over that many heads needs a ring, under the mesh of `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["context"] > 1 and heads % (mesh.shape["tensor"] * mesh.shape["context"]) > 0


def make_attend(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0):
    """Makes an attend function (see `world_model.attention.make_attend`) for a mesh on which a ring is `needed`."""
    seen = np.array([[sees(table, q, k, window_frames) for k in keys] for q in queries], bool)
    return make_ring(seen, segment_of_token(queries), segment_of_token(keys))


def make_ring(seen: np.ndarray, rows: np.ndarray, columns: np.ndarray):
    """Makes attend(q, k, v, key_valid, segment_mask).

    Bool `seen` [segments of queries, segments of keys] says which queries see which keys; int `rows` [Lq] and
    `columns` [Lk] name each token's segment.
    """
    def attend(q, k, v, key_valid=None, segment_mask=None):
        ways = jax.sharding.get_abstract_mesh().shape["context"]
        visible = jnp.pad(seen if segment_mask is None else seen & segment_mask, ((0, 1), (0, 1)))  # PADDING is last
        valid = jnp.ones(k.shape[:2], bool) if key_valid is None else key_valid
        out = _over_context(_turns)(
            *(_pad(x, ways, 1) for x in (q, k, v, valid)), _pad(jnp.asarray(rows), ways, 0, PADDING),
            _pad(jnp.asarray(columns), ways, 0, PADDING), visible)
        return out[:, :q.shape[1]]

    return attend


def _over_context(turns):
    """Maps `turns` over the mesh: each device gets its rows of the batch, its stretch of tokens and its heads."""
    mesh = jax.sharding.get_abstract_mesh()
    rows, tokens, heads = (tuple(a for a in sharding.mesh_axes(axis) if a not in mesh.manual_axes) or None
                           for axis in ("batch", "tokens", "heads"))
    whole, stretch = PartitionSpec(rows, tokens, heads), PartitionSpec(tokens)
    return jax.shard_map(
        turns, in_specs=(whole, whole, whole, PartitionSpec(rows, tokens), stretch, stretch, PartitionSpec()),
        out_specs=whole, axis_names=set(mesh.axis_names) - set(mesh.manual_axes), check_vma=False)


def _turns(q, k, v, valid, rows, columns, visible):
    """Computes attention of this device's queries over the keys of all devices; softmax in float32."""
    ways = jax.lax.axis_size("context")
    neighbours = [(i, (i + 1) % ways) for i in range(ways)]
    q = q * q.shape[-1] ** -0.5

    @jax.checkpoint  # the backward pass makes the scores again, turn by turn
    def turn(carry, _):
        (k, v, valid, columns), (top, total, out) = carry
        mask = visible[rows][:, columns] & valid[:, None, None, :]
        logits = jnp.where(mask, jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32), NEGATIVE)
        higher = jax.lax.stop_gradient(jnp.maximum(top, logits.max(axis=-1)))
        weights, shrink = jnp.where(mask, jnp.exp(logits - higher[..., None]), 0.0), jnp.exp(top - higher)
        summed = jnp.einsum("bnqk,bknd->bnqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        running = higher, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + summed
        return (jax.lax.ppermute((k, v, valid, columns), "context", neighbours), running), None

    shape = q.shape[0], q.shape[2], q.shape[1]
    nothing = jnp.full(shape, NEGATIVE), jnp.zeros(shape), jnp.zeros((*shape, q.shape[-1]))
    (_, (_, total, out)), _ = jax.lax.scan(turn, ((k, v, valid, columns), nothing), length=ways)
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    return jnp.swapaxes(out, 1, 2).astype(q.dtype)


def _pad(x, ways: int, axis: int, value=0):
    """Pads an axis to a multiple of `ways`."""
    count = -x.shape[axis] % ways
    return jnp.pad(x, [(0, count if i == axis else 0) for i in range(x.ndim)], constant_values=value)
