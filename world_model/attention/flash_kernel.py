"""Flash attention on TPU over a list of tile pairs (FlashAttention-2, arXiv 2307.08691, section 3, in Pallas).

Everything is stored tokens-minor, [heads, d, L], as XLA leaves the products that make it, and scores stand as
[keys, queries]: maxima and sums over keys then run over sublanes, where they cost no exchange between lanes, and a
query's maximum, sum and log-sum-exp are rows. A kernel takes one step for each listed pair of tiles and none for
others. The backward pass goes through the pairs column by column and sums the gradients of all queries of a head in
vector memory; they are written once.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from world_model.attention.tiles import FULL, MASKED, Tiles, Visible

LANES = 128
UNSEEN, FLOOR = -1e30, -1e20  # a score that is not; below every score that is, above UNSEEN: exp(UNSEEN - FLOOR) = 0
FIRST, LAST, FIRST_ACROSS, LAST_ACROSS = 1, 2, 4, 8  # visits of a pair's row (column) of tiles; of the other side's
# Keys and queries computed at a time, so that products run beside vector work, and how many such blocks of scores
# are made ahead: by `python -m benchmarks.kernel_schedule`.
FORWARD_BLOCK, AHEAD, BACKWARD_WIDTH = (128, 128), 8, 512
VECTOR_MEMORY = 64 * 2**20  # bytes
GRADIENT_MEMORY = 32 * 2**20  # of these, for the gradients of a head's queries and for two copies to be written


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attend(tiles: Tiles, name: str | None, interpret: bool, q, k, v, valid=None, drawn=None):
    """Attention of q [H, d, Lq], scaled, over k, v [H, d, Lk] -> [H, d, Lq], where H is B heads of a sample each.

    name: under which the backward pass's residuals may be kept (remat.py); interpret: run on any platform, slowly;
    valid bool [B, Lk] and drawn as in `Tiles.visible`. A query that sees no key gives zeros.
    """
    return _attend_forward(tiles, name, interpret, q, k, v, valid, drawn)[0]


def _attend_forward(tiles, name, interpret, q, k, v, valid, drawn):
    out, lse = _forward(tiles, interpret, q, k, v, tiles.visible(valid, drawn))
    if name is not None:
        out, lse = (checkpoint_name(x, name) for x in (out, lse))
    return out, (q, k, v, valid, drawn, out, lse)


def _attend_backward(tiles, name, interpret, kept, d_out):
    """A head's query gradients must fit the vector memory: where they do not, keys meet the queries piece by piece."""
    q, k, v, valid, drawn, out, lse = kept
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=1, keepdims=True)
    pieces = tiles.pieces(GRADIENT_MEMORY // (q.shape[1] * (4 + 2 * q.dtype.itemsize)))
    cut = lambda x: jax.lax.split(x, [len(piece.queries) for piece in pieces], axis=2)
    found = [_backward(piece, interpret, q, k, v, d_out, lse, delta, piece.visible(valid, drawn))
             for piece, q, d_out, lse, delta in zip(pieces, *map(cut, (q, d_out, lse, delta)), strict=True)]
    dq, dk, dv = zip(*found, strict=True)
    return jnp.concatenate(dq, axis=2), sum(dk), sum(dv), None, None


attend.defvjp(_attend_forward, _attend_backward)


def edges(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """int32 [P]: which steps are first and last visits of their tiles; pairs with the same `along` stand together."""
    found = np.zeros(len(along), np.int32)
    for side, flags in ((along, (FIRST, LAST)), (across, (FIRST_ACROSS, LAST_ACROSS))):
        for order, flag in zip((slice(None), slice(None, None, -1)), flags, strict=True):
            _, visits = np.unique(side[order], return_index=True)
            found[order][visits] |= flag
    return found


def _at(flags, flag: int):
    return (flags[pl.program_id(1)] & flag) != 0


def _cut(length: int, width: int) -> list[slice]:
    return [slice(start, min(start + width, length)) for start in range(0, length, width)]


def _dot(a, b, contract: tuple[int, int] = (1, 0)):
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32)


def _of_kind(kinds, heads: int, compute):
    """Runs compute(masked) where the step's pair of tiles has something visible."""
    kind = kinds[jax.lax.div(pl.program_id(0), heads) * pl.num_programs(1) + pl.program_id(1)]
    pl.when(kind == FULL)(functools.partial(compute, False))
    pl.when(kind == MASKED)(functools.partial(compute, True))


def _meet(words, codes, keys: slice, queries: slice):
    """bool [keys, queries]: which share a bit."""
    words, codes, meet = words[0, :, queries], codes[0, :, keys], False
    for word, code in zip(jnp.split(words, len(words)), jnp.split(codes, len(codes)), strict=True):
        column = jnp.broadcast_to(code, (LANES, code.shape[1])).T  # a key's code in every lane
        meet |= jnp.concatenate([(column & word[:, at]) != 0 for at in _cut(word.shape[1], LANES)], axis=1)
    return meet


def _forward_kernel(heads, row, column, edge, kinds, q, k, v, words, codes, out, lse, total_out, top, total):
    @pl.when(_at(edge, FIRST))
    def _():
        total_out[...] = jnp.zeros_like(total_out)
        top[...], total[...] = jnp.full_like(top, FLOOR), jnp.zeros_like(total)

    def compute(masked: bool):
        keys, values = k[0].T, v[0]
        blocks = list(itertools.product(*map(_cut, (k.shape[2], q.shape[2]), FORWARD_BLOCK)))
        products = (_dot(keys[of], q[0, :, at]) for of, at in blocks)
        ahead = list(itertools.islice(products, AHEAD))
        for of, at in blocks:
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
    """(out [H, d, Lq], log-sum-exp float32 [H, 1, Lq])."""
    (count, depth, length), (tile_q, _) = q.shape, tiles.tile
    scratch = [pltpu.VMEM((rows, tile_q), jnp.float32) for rows in (depth, 1, 1)]
    of_queries = lambda rows: pl.BlockSpec((1, rows, tile_q), lambda h, i, row, *_: (h, 0, row[i]))
    shapes = q, jax.ShapeDtypeStruct((count, 1, length), jnp.float32)
    return _call("fwd", _forward_kernel, tiles, np.arange(len(tiles.rows)), tiles.rows, tiles.columns, interpret,
                 visible, (q, k, v), "qkk", (of_queries(depth), of_queries(1)), shapes, scratch)


def _backward(tiles: Tiles, interpret: bool, q, k, v, d_out, lse, delta, visible: Visible):
    """Gradients of q, k, v."""
    (_, depth, length), (tile_q, tile_k) = q.shape, tiles.tile
    scratch = [pltpu.VMEM((length // tile_q, depth, tile_q), jnp.float32),
               *(pltpu.VMEM((tile_k, depth), kind) for kind in (jnp.float32, jnp.float32, k.dtype, v.dtype))]
    of_keys = pl.BlockSpec((1, depth, tile_k), lambda h, i, row, column, *_: (h, 0, column[i]))
    whole = pl.BlockSpec((1, depth, length), lambda h, *_: (h, 0, 0))
    return _call("bwd", _backward_kernel, tiles, tiles.by_column, tiles.columns, tiles.rows, interpret, visible,
                 (q, k, v, d_out, lse, delta), "qkkqqq", (whole, of_keys, of_keys), (q, k, v), scratch)


def _call(kind, kernel, tiles: Tiles, order, along, across, interpret, visible, arrays, sides, out_specs, shapes,
          scratch):
    """One kernel over the grid (heads, pairs of tiles in `order`). sides: of each array, q or k, whose tiles it is cut
    into; shapes: outputs' shapes and dtypes, as arrays have them."""
    (groups, _), count, (tile_q, tile_k) = visible.kinds.shape, arrays[0].shape[0], tiles.tile
    heads = count // groups
    spec = {"q": lambda x: pl.BlockSpec((1, x.shape[1], tile_q), lambda h, i, row, *_: (h, 0, row[i])),
            "k": lambda x: pl.BlockSpec((1, x.shape[1], tile_k), lambda h, i, row, column, *_: (h, 0, column[i]))}
    words = pl.BlockSpec((1, tiles.words, tile_q), lambda h, i, row, column, *_: (column[i], 0, row[i]))
    codes = pl.BlockSpec((1, tiles.words, tile_k), lambda h, i, row, column, *_: (jax.lax.div(h, heads), 0, column[i]))
    with jax.named_scope(f"pairs_{tiles.computed * tile_q * tile_k}"):
        return pl.pallas_call(
            functools.partial(kernel, heads), name=f"flash_{kind}", interpret=interpret,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=4, grid=(count, len(order)), out_specs=out_specs, scratch_shapes=scratch,
                in_specs=[*(spec[side](x) for side, x in zip(sides, arrays, strict=True)), words, codes]),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"),
                                                 vmem_limit_bytes=VECTOR_MEMORY),
        )(tiles.rows[order], tiles.columns[order], edges(along[order], across[order]),
          visible.kinds[:, order].reshape(-1), *arrays, visible.words, visible.codes)
