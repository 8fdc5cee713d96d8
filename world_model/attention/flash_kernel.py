"""Flash attention on TPU over a list of tile pairs (FlashAttention-2, arXiv 2307.08691, section 3, in Pallas).

All arrays are stored tokens-minor, [heads, d, L], as XLA leaves the products that make them, and scores are
[keys, queries]: maxima and sums over keys then run over sublanes, which needs no exchange between lanes, and a query's
maximum, sum and log-sum-exp are rows. A kernel takes one step for each listed pair of tiles and none for others. The
backward pass goes through the pairs column by column, sums the gradients of all queries of a head in vector memory and
writes them once.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from world_model.attention.tiles import FIRST, FIRST_ACROSS, FULL, LAST, LAST_ACROSS, MASKED, Tiles, Visible, edges

LANES = 128
# UNSEEN is the score of a masked pair. FLOOR lies between it and every real score, so that exp(UNSEEN - FLOOR) = 0.
UNSEEN, FLOOR = -1e30, -1e20
# (keys, queries) whose scores the forward pass computes at a time, how many such subtiles it computes ahead so that
# products run beside vector work, and queries at a time in the backward pass; benchmarks/kernel_schedule.py chose them.
FORWARD_SUBTILE, AHEAD, BACKWARD_WIDTH = (128, 128), 8, 512
VECTOR_MEMORY = 64 * 2**20  # bytes
GRADIENT_MEMORY = 32 * 2**20  # bytes of it for the gradients of a head's queries and two copies that are written


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attend(tiles: Tiles, name: str | None, interpret: bool, q, k, v, valid=None, segment_mask=None):
    """Computes attention of scaled q [H, d, Lq] over k, v [H, d, Lk] -> [H, d, Lq]; H counts heads of B samples.

    name: under which the backward pass's residuals may be kept (remat.py); interpret: runs on any platform, slowly;
    valid bool [B, Lk] and segment_mask are those of `Tiles.visible`. A query that sees no key gives zeros.
    """
    return _attend_forward(tiles, name, interpret, q, k, v, valid, segment_mask)[0]


def _attend_forward(tiles, name, interpret, q, k, v, valid, segment_mask):
    out, lse = _forward(tiles, interpret, q, k, v, tiles.visible(valid, segment_mask))
    if name is not None:
        out, lse = (checkpoint_name(x, name) for x in (out, lse))
    return out, (q, k, v, valid, segment_mask, out, lse)


def _attend_backward(tiles, name, interpret, kept, d_out):
    """Computes the gradients, for a stretch of queries at a time where those of all do not fit the vector memory."""
    q, k, v, valid, segment_mask, out, lse = kept
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=1, keepdims=True)
    pieces = tiles.pieces(GRADIENT_MEMORY // (q.shape[1] * (4 + 2 * q.dtype.itemsize)))
    lengths = [len(piece.queries) for piece in pieces]
    of_pieces = (jax.lax.split(x, lengths, axis=2) for x in (q, d_out, lse, delta))
    found = [_backward(piece, interpret, q, k, v, d_out, lse, delta, piece.visible(valid, segment_mask))
             for piece, q, d_out, lse, delta in zip(pieces, *of_pieces, strict=True)]
    dq, dk, dv = zip(*found, strict=True)
    return jnp.concatenate(dq, axis=2), sum(dk), sum(dv), None, None


attend.defvjp(_attend_forward, _attend_backward)


def _at(flags, flag: int):
    """Whether the current step has a flag."""
    return (flags[pl.program_id(1)] & flag) != 0


def _cut(length: int, width: int) -> list[slice]:
    return [slice(start, min(start + width, length)) for start in range(0, length, width)]


def _dot(a, b, contract: tuple[int, int] = (1, 0)):
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32)


def _of_kind(kinds, heads: int, compute):
    """Runs compute(masked) where something is visible in the current step's pair of tiles."""
    kind = kinds[jax.lax.div(pl.program_id(0), heads) * pl.num_programs(1) + pl.program_id(1)]
    pl.when(kind == FULL)(functools.partial(compute, False))
    pl.when(kind == MASKED)(functools.partial(compute, True))


def _meet(words, codes, keys: slice, queries: slice):
    """Finds which keys and queries share a bit: bool [keys, queries]."""
    words, codes, meet = words[0, :, queries], codes[0, :, keys], False
    for word, code in zip(jnp.split(words, len(words)), jnp.split(codes, len(codes)), strict=True):
        column = jnp.broadcast_to(code, (LANES, code.shape[1])).T  # a key's code in every lane
        meet |= jnp.concatenate([(column & word[:, at]) != 0 for at in _cut(word.shape[1], LANES)], axis=1)
    return meet


def _forward_kernel(heads, row, column, edge, kinds, q, k, v, words, codes, out, lse, total_out, top, total):
    """One step of the forward pass: adds the output of a pair of tiles to its row's running softmax."""
    @pl.when(_at(edge, FIRST))
    def _():
        total_out[...] = jnp.zeros_like(total_out)
        top[...], total[...] = jnp.full_like(top, FLOOR), jnp.zeros_like(total)

    def compute(masked: bool):
        keys, values = k[0].T, v[0]
        subtiles = list(itertools.product(*map(_cut, (k.shape[2], q.shape[2]), FORWARD_SUBTILE)))
        products = (_dot(keys[of], q[0, :, at]) for of, at in subtiles)
        ahead = list(itertools.islice(products, AHEAD))
        for of, at in subtiles:
            ahead.extend(itertools.islice(products, 1))
            scores = ahead.pop(0)
            if masked:
                scores = jnp.where(_meet(words, codes, of, at), scores, UNSEEN)
            higher = jnp.maximum(top[:, at], scores.max(axis=0, keepdims=True))
            weights, shrink = jnp.exp(scores - higher), jnp.exp(top[:, at] - higher)
            top[:, at], total[:, at] = higher, total[:, at] * shrink + weights.sum(axis=0, keepdims=True)
            total_out[:, at] = total_out[:, at] * shrink + _dot(values[:, of], weights.astype(values.dtype))

    _of_kind(kinds, heads, compute)

    @pl.when(_at(edge, LAST))
    def _():
        summed = jnp.where(total[...] > 0, total[...], 1.0)
        out[0], lse[0] = (total_out[...] / summed).astype(out.dtype), top[...] + jnp.log(summed)


def _backward_kernel(heads, row, column, edge, kinds, q, k, v, d_out, lse, delta, words, codes, dq, dk, dv,
                     all_dq, sum_dk, sum_dv, keys, values):
    """One step of the backward pass: adds the gradients of a pair of tiles to those of its row and column."""
    tile = row[pl.program_id(1)]

    @pl.when(_at(edge, FIRST))
    def _():
        sum_dk[...], sum_dv[...] = jnp.zeros_like(sum_dk), jnp.zeros_like(sum_dv)
        keys[...], values[...] = k[0].T, v[0].T

    @pl.when(_at(edge, FIRST_ACROSS))
    def _():
        all_dq[tile] = jnp.zeros(all_dq.shape[1:], all_dq.dtype)

    def compute(masked: bool):
        for at in _cut(q.shape[2], BACKWARD_WIDTH):
            queries, d_outs = q[0, :, at], d_out[0, :, at]
            scores = _dot(keys[...], queries)
            if masked:
                scores = jnp.where(_meet(words, codes, slice(None), at), scores, UNSEEN)
            weights = jnp.exp(scores - lse[0, :, at])
            d_scores = (weights * (_dot(values[...], d_outs) - delta[0, :, at])).astype(queries.dtype)
            sum_dv[...] += _dot(weights.astype(queries.dtype), d_outs, (1, 1))
            sum_dk[...] += _dot(d_scores, queries, (1, 1))
            all_dq[tile, :, at] += _dot(k[0], d_scores)

    _of_kind(kinds, heads, compute)

    @pl.when(_at(edge, LAST))
    def _():
        dk[0], dv[0] = sum_dk[...].T.astype(dk.dtype), sum_dv[...].T.astype(dv.dtype)

    @pl.when(_at(edge, LAST_ACROSS))
    def _():
        start = pl.multiple_of(tile * all_dq.shape[2], all_dq.shape[2])
        dq[0, :, pl.ds(start, all_dq.shape[2])] = all_dq[tile].astype(dq.dtype)


def _forward(tiles: Tiles, interpret: bool, q, k, v, visible: Visible):
    """Runs the forward kernel; returns (out [H, d, Lq], log-sum-exp float32 [H, 1, Lq])."""
    (count, depth, length), (tile_q, _) = q.shape, tiles.tile
    scratch = [pltpu.VMEM((rows, tile_q), jnp.float32) for rows in (depth, 1, 1)]
    shapes = q, jax.ShapeDtypeStruct((count, 1, length), jnp.float32)
    out_specs = tuple(_spec("q", x.shape[1], tiles) for x in shapes)
    return _call("fwd", _forward_kernel, tiles, np.arange(len(tiles.rows)), tiles.rows, tiles.columns, interpret,
                 visible, (q, k, v), "qkk", out_specs, shapes, scratch)


def _backward(tiles: Tiles, interpret: bool, q, k, v, d_out, lse, delta, visible: Visible):
    """Runs the backward kernel; returns the gradients of q, k, v."""
    (_, depth, length), (tile_q, tile_k) = q.shape, tiles.tile
    scratch = [pltpu.VMEM((length // tile_q, depth, tile_q), jnp.float32),
               *(pltpu.VMEM((tile_k, depth), kind) for kind in (jnp.float32, jnp.float32, k.dtype, v.dtype))]
    of_keys, whole = _spec("k", depth, tiles), pl.BlockSpec((1, depth, length), lambda h, *_: (h, 0, 0))
    return _call("bwd", _backward_kernel, tiles, tiles.by_column, tiles.columns, tiles.rows, interpret, visible,
                 (q, k, v, d_out, lse, delta), "qkkqqq", (whole, of_keys, of_keys), (q, k, v), scratch)


def _spec(side: str, rows: int, tiles: Tiles) -> pl.BlockSpec:
    """Cuts an array [H, rows, L] into the tiles of a side: q, or k."""
    if side == "q":
        return pl.BlockSpec((1, rows, tiles.tile[0]), lambda h, i, row, *_: (h, 0, row[i]))
    return pl.BlockSpec((1, rows, tiles.tile[1]), lambda h, i, row, column, *_: (h, 0, column[i]))


def _call(kind, kernel, tiles: Tiles, order, along, across, interpret, visible, arrays, sides, out_specs, shapes,
          scratch):
    """Runs one kernel over the grid (heads, pairs of tiles in `order`).

    sides: for each array q or k, into whose tiles it is cut; shapes: arrays, or the like, of the outputs' shapes and
    dtypes.
    """
    (groups, _), count, (tile_q, tile_k) = visible.kinds.shape, arrays[0].shape[0], tiles.tile
    heads = count // groups
    words = pl.BlockSpec((1, tiles.words, tile_q), lambda h, i, row, column, *_: (column[i], 0, row[i]))
    codes = pl.BlockSpec((1, tiles.words, tile_k), lambda h, i, row, column, *_: (jax.lax.div(h, heads), 0, column[i]))
    with jax.named_scope(f"pairs_{tiles.computed * tile_q * tile_k}"):
        return pl.pallas_call(
            functools.partial(kernel, heads), name=f"flash_{kind}", interpret=interpret,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=4, grid=(count, len(order)), out_specs=out_specs, scratch_shapes=scratch,
                in_specs=[*(_spec(side, x.shape[1], tiles) for side, x in zip(sides, arrays, strict=True)),
                          words, codes]),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"),
                                                 vmem_limit_bytes=VECTOR_MEMORY),
        )(tiles.rows[order], tiles.columns[order], edges(along[order], across[order]),
          visible.kinds[:, order].reshape(-1), *arrays, visible.words, visible.codes)
