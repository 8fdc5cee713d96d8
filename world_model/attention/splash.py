"""Block-sparse flash attention on TPU: JAX's splash kernel over the visibility table.

The kernel works tile by tile and skips tiles in which nothing is visible. Segments are reordered so that those of
the same block stand together, and each such group is padded to whole tiles: almost no tile is then partly masked
(the 14B example computes 1.03 times its visible pairs). Tiles inside one group are as large as padding allows.

Where block size and window are drawn while training, the tiles' table is data: made of the drawn mask inside the step,
it says anew which tiles are empty, full or masked, and nothing is compiled again.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info
from jax.sharding import PartitionSpec

from world_model import sharding
from world_model.attention import ring
from world_model.remat import ATTENDED
from world_model.tokens import CLEAN_GROUPS, Sequence, length, merge_ranges, segment_of_token
from world_model.visibility import Table, sees

LANES = 128  # a tile is a multiple of this
LARGEST_TILE = 1024  # scores of a tile and their gradients must fit the vector memory
MINOR = kernel.QKVLayout.SEQ_MINOR  # how XLA leaves products that are reduced over heads: no transposed copies
TILE_OVERHEAD = 96  # tokens: what a tile costs beside its products, per side, in units of work


def make_attend(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0, *,
                tile: int | None = None, interpret: bool = False):
    """See `world_model.attention.make_attend`. tile: tokens on a side (default: `choose_tile`); interpret: runs the
    kernel's program on any platform, slowly, for tests."""
    tile = tile or choose_tile(queries, keys)
    places_q, places_k = Arrangement(queries, tile), Arrangement(keys, tile)
    arranged = make_arranged(table, places_q, places_k, window_frames, interpret=interpret)

    def attend(q, k, v, key_valid=None, drawn=None):
        valid = None if key_valid is None else places_k.arrange(key_valid)
        return places_q.restore(arranged(places_q.arrange(q), places_k.arrange(k), places_k.arrange(v), valid, drawn))

    return attend


def make_arranged(table: Table, queries: "Arrangement", keys: "Arrangement", window_frames: int = 0, *,
                  interpret: bool = False):
    """attend(q, k, v, key_valid, drawn) of `make_attend` over tokens that stand as the kernel wants them."""
    tile, mask = keys.tile, TableMask(table, queries, keys, window_frames)
    pairs = mask.tiles(tile) * tile * tile

    around = ring.make_ring(*mask.table())
    # One mask serves every head.
    made = kernel.make_splash_mha(masks.MultiHeadMask([mask]), head_shards=1, q_seq_shards=1,
                                  **_settings(tile, interpret))

    def attend(q, k, v, key_valid=None, drawn=None):
        if ring.needed(q.shape[2]):
            return around(q, k, v, key_valid, drawn)
        now = made if drawn is None else drawn_kernel(mask.drawn(drawn), tile, interpret)
        # The number of pairs travels in the scope's name to where a plan reads the compiled program.
        with jax.named_scope(f"pairs_{pairs}"):
            out = sharded(now, *(jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v)), key_valid)
        return jnp.swapaxes(out, 1, 2)

    return attend


def drawn_kernel(mask, tile: int, interpret: bool) -> kernel.SplashAttentionKernel:
    """The kernel of a traced mask, bool [padded queries, padded keys]; held whole, one byte a pair."""
    made = []
    for process in (mask_info.process_dynamic_mask, mask_info.process_dynamic_mask_dkv):
        info, _ = process(mask[None], (tile, tile))
        # Kept for each tile, whether it is looked at or not; flat, as the kernel reads it.
        made.append(info._replace(partial_mask_blocks=info.partial_mask_blocks.reshape(-1, tile, tile),
                                  is_dynamic_mask=None))
    return kernel.SplashAttentionKernel(
        made[0], None, made[1], is_mqa=False, save_residuals=False, mask_value=kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None, mask_function=None, **_settings(tile, interpret))


def _settings(tile: int, interpret: bool) -> dict:
    return {"block_sizes": block_sizes(tile, tile), "residual_checkpoint_name": ATTENDED, "interpret": interpret}


def sharded(made, q, k, v, valid, heads: str = "attention_heads", queries: str | None = None):
    """The kernel over the mesh: each device its rows of the batch, its heads and, where `queries` names their axis, its
    queries. q, k, v [B, n, L, d]."""
    def each(made, q, k, v, valid):
        # Sample by sample: the backward kernel's partial query gradients, 2.2 GiB of one of the 14B's samples, are gone
        # before the next one's are made.
        seeing = jnp.ones(q.shape[2], jnp.int32)
        ids = lambda i: None if valid is None else kernel.SegmentIds(seeing, valid[i].astype(jnp.int32))
        return jnp.stack([each_head(made, q[i], k[i], v[i], ids(i)) for i in range(len(q))])

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return each(made, q, k, v, valid)
    rows, heads, tokens = (tuple(a for a in sharding.mesh_axes(axis) if a not in mesh.manual_axes) or None
                           for axis in ("batch", heads, queries))
    over_queries, over_keys = PartitionSpec(rows, heads, tokens), PartitionSpec(rows, heads)
    valid_spec = None if valid is None else PartitionSpec(rows)
    return jax.shard_map(
        each, in_specs=(PartitionSpec(), over_queries, over_keys, over_keys, valid_spec), out_specs=over_queries,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes), check_vma=False)(made, q, k, v, valid)


def each_head(made, q, k, v, ids):
    """The kernel over heads, q, k, v [n, L, d]. A mapped axis is shared out to a chip's two cores (v5p); the backward
    kernel's own axis of heads is not, since heads might share keys."""
    one = lambda q, k, v: made(q[None], k[None], v[None], ids)[0]
    return jax.vmap(one)(q, k, v)


def block_sizes(queries: int, keys: int) -> kernel.BlockSizes:
    """Tiles of all passes."""
    return kernel.BlockSizes(
        block_q=queries, block_kv=keys, block_kv_compute=keys, block_q_dkv=queries, block_kv_dkv=keys,
        block_kv_dkv_compute=keys, use_fused_bwd_kernel=True, q_layout=MINOR, k_layout=MINOR, v_layout=MINOR)


class Arrangement:
    """Segments regrouped and padded: groups of one role and block, clean ones first, each a whole number of tiles."""

    def __init__(self, sequence: Sequence, tile: int):
        self.sequence, self.tile = sequence, tile
        ordered = sorted(sequence, key=_group)
        self.groups = [list(group) for _, group in itertools.groupby(ordered, key=_group)]

    @functools.cached_property
    def order(self) -> np.ndarray:
        """int32 [places]: the token in each place, -1 where it is padding."""
        rows = [np.concatenate([*(np.arange(s.start, s.stop) for s in group), np.full(self.padding(group), -1)])
                for group in self.groups]
        return np.concatenate(rows).astype(np.int32)

    @functools.cached_property
    def segment(self) -> np.ndarray:
        """int32 [places]: each token's index in the sequence of segments, -1 where it is padding."""
        return np.where(self.order < 0, -1, segment_of_token(self.sequence)[self.order]).astype(np.int32)

    def padding(self, group: list) -> int:
        """Places that fill the group's last tile."""
        return -sum(s.length for s in group) % self.tile

    def arrange(self, x):
        """[B, L, ...] -> [B, places, ...], zeros for padding."""
        pieces = []
        for group in self.groups:
            pieces += [x[:, start:stop] for start, stop in _ranges(group)]
            if padding := self.padding(group):
                pieces.append(jnp.zeros((x.shape[0], padding, *x.shape[2:]), x.dtype))
        return jnp.concatenate(pieces, axis=1)

    def restore(self, x):
        """[B, places, ...] -> [B, L, ...]."""
        pieces, start = {}, 0
        for group in self.groups:
            for first, last in _ranges(group):
                pieces[first] = x[:, start:start + last - first]
                start += last - first
            start += self.padding(group)
        return jnp.concatenate([pieces[start] for start in sorted(pieces)], axis=1)


def _ranges(group: list) -> tuple[tuple[int, int], ...]:
    return merge_ranges([(s.start, s.stop) for s in group])


def _group(segment) -> tuple[bool, int]:
    return segment.group not in CLEAN_GROUPS, segment.block


class TableMask(masks.Mask):
    """A visibility table as the kernel reads it: any rectangle of it, on demand."""

    def __init__(self, table: Table, queries: Arrangement, keys: Arrangement, window_frames: int):
        seen = [[sees(table, q, k, window_frames) for k in keys.sequence] for q in queries.sequence]
        # Padding is the last row and the last column: nobody sees it. A padding query sees what its neighbour does,
        # so that its tile is no more masked than theirs.
        self._seen = np.pad(np.array(seen, bool), ((0, 0), (0, 1)))
        q = queries.segment
        self._queries, self._keys = q[np.maximum.accumulate(np.where(q >= 0, np.arange(len(q)), 0))], keys.segment

    @property
    def shape(self) -> tuple[int, int]:
        """Padded lengths of queries and keys."""
        return len(self._queries), len(self._keys)

    def __getitem__(self, index) -> np.ndarray:
        (rows, row_counts), (columns, column_counts) = (
            _runs(segment[where]) for segment, where in zip((self._queries, self._keys), index, strict=True))
        return self._seen[np.ix_(rows, columns)].repeat(row_counts, axis=0).repeat(column_counts, axis=1)

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Arguments of ring.make_ring."""
        return self._seen[:, :-1], self._queries, self._keys

    def drawn(self, drawn):
        """bool [padded queries, padded keys] of those pairs that `drawn`, bool [segments of queries, segments of keys],
        leaves."""
        seen = jnp.pad(drawn & self._seen[:, :-1], ((0, 0), (0, 1)))
        return seen[self._queries][:, self._keys]

    def tiles(self, tile: int) -> int:
        """Tiles in which something is visible."""
        cut = lambda x: [np.unique(x[i:i + tile]) for i in range(0, len(x), tile)]
        return sum(bool(self._seen[np.ix_(q, k)].any()) for q in cut(self._queries) for k in cut(self._keys))

    def __hash__(self):
        return id(self)

    def __eq__(self, other):
        return self is other


def _runs(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of runs of equal neighbours, and the runs' lengths."""
    starts = np.flatnonzero(np.diff(x, prepend=x[0] - 1))
    return x[starts], np.diff(starts, append=len(x))


def choose_tile(queries: Sequence, keys: Sequence) -> int:
    """The tile side that costs least: padded tokens, plus an overhead for every tile."""
    def cost(tile: int) -> float:
        groups = itertools.chain(*(Arrangement(sequence, tile).groups for sequence in (queries, keys)))
        return sum(-(-sum(s.length for s in group) // tile) * (tile + TILE_OVERHEAD) for group in groups)

    most = -(-max(length(queries), length(keys)) // LANES) * LANES
    return min(range(LANES, min(most, LARGEST_TILE) + 1, LANES), key=lambda tile: (cost(tile), -tile))
