"""JAX's splash attention in replicas, with the work of its kernels written where a plan looks for it."""

import math
import re

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}  # over the pairs that a kernel computes; a fused dkv has dq's result as well
FUSED_PRODUCTS = 5
# Share of the peak by libtpu's schedule (schedule.py beside this file). JAX's backward kernels share out samples alone
# to a v5p's two cores.
EFFICIENCY = {"v5e": {"fwd": 0.69, "bwd": 0.94}, "v5p": {"fwd": 0.67, "bwd": 0.92}, "v6e": {"fwd": 0.27, "bwd": 0.41},
              "v7x": {"fwd": 0.26, "bwd": 0.41}, "v5p, one sample": {"fwd": 0.68, "bwd": 0.47}}
COUNTED = {"fwd": 2, "bwd": 5}  # what a plan counts of a kernel of that name (world_model/analysis/program.py)


def efficiency(chip: str, samples: int) -> dict[str, float]:
    """Share of the peak where a device has so many samples."""
    return EFFICIENCY.get(f"{chip}, one sample", EFFICIENCY[chip]) if samples == 1 else EFFICIENCY[chip]


def make_attend(causal: bool, queries: int, keys: int, heads: int, tile: tuple[int, int], *, fused: bool,
                whole: bool = False):
    """Makes attend(q [B, n, Lq, d], k, v [B, m, Lk, d], ids) for one device.

    tile: (queries, keys) of the published tiles, whose pairs are counted; fused: one kernel for the backward pass.
    Lengths are multiples of the tile. Unless `whole`, smaller tiles are compiled: minutes less, and no estimate reads
    their schedule. A fused kernel keeps the tile's keys, for each of which it writes a partial sum of query gradients.
    """
    side_q, side_k = math.gcd(tile[0], 128 if fused else 512), tile[1] if fused else math.gcd(tile[1], 512)
    if whole:
        side_q, side_k = tile
    sizes = splash.BlockSizes(
        block_q=side_q, block_kv=side_k, block_kv_compute=side_k, block_q_dkv=side_q, block_kv_dkv=side_k,
        block_kv_dkv_compute=side_k, use_fused_bwd_kernel=fused,
        **({} if fused else {"block_q_dq": side_q, "block_kv_dq": side_k}))
    mask = masks.CausalMask((queries, keys)) if causal else masks.FullMask((queries, keys))
    kernel = splash.make_splash_mha(masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1,
                                    q_seq_shards=1)
    pairs = visible_pairs(causal, queries, keys, *tile)

    def attend(q, k, v, ids=None):
        with jax.named_scope(f"tiles_{pairs}_{'fused' if fused else 'apart'}"):
            return jax.vmap(kernel, in_axes=(0, 0, 0, None))(q * q.shape[-1] ** -0.5, k, v, ids)

    return attend


def visible_pairs(causal: bool, queries: int, keys: int, side_q: int, side_k: int) -> int:
    """Counts the (query, key) pairs of the tiles that a kernel computes."""
    rows, columns = np.arange(queries // side_q)[:, None], np.arange(keys // side_k)
    seen = columns * side_k <= rows * side_q + side_q - 1 if causal else np.ones((len(rows), len(columns)), bool)
    return int(seen.sum()) * side_q * side_k


def in_our_words(text: str) -> str:
    """Renames the kernels in a compiled program's text to ours, with pairs that give their FLOP."""
    def rename(found: re.Match) -> str:
        pairs, way, between, kind = found.groups()
        products = FUSED_PRODUCTS if (kind, way) == ("dkv", "fused") else PRODUCTS[kind]
        ours = "fwd" if kind == "fwd" else "bwd"
        return f"pairs_{int(pairs) * products // COUNTED[ours]}{between}flash_{ours}"

    return re.sub(r'tiles_(\d+)_(fused|apart)([^"\n]*?)splash_m[hq]a_(fwd|dkv|dq)', rename, text)
