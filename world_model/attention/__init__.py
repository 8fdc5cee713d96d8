"""Attention over the visibility table: one signature, interchangeable kernels.

`make_attend` turns a table and the segments of queries and keys into a function
    attend(q [B, Lq, n, d], k [B, Lk, n, d], v [B, Lk, n, d], key_valid bool [B, Lk] | None) -> [B, Lq, n, d]
with softmax scale d ** -0.5. key_valid takes keys away per sample (padded frames, actions of a video-only clip);
the output of a query left with no key at all is finite and without meaning: mask its loss.
A fifth argument, bool [segments of queries, segments of keys] (visibility.sampled_mask), takes pairs away at run time.
"""

from collections.abc import Callable

import jax

from world_model.attention import blockwise, cudnn, flash, reference, ring
from world_model.attention.packing import PackedOrder, choose_tile
from world_model.attention.tokens import Sequence, length
from world_model.attention.visibility import Table

# The most padding, as a share of the tokens, at which tokens stay in packed order through all layers. A padded position
# costs 6 (6 D^2 + 2 D F) FLOP of products, forward and backward. Moving a token before each attention and back after it
# (queries, keys, values and output; forward, recomputed and backward) reads or writes 48 D bytes. The two are equal at
# a share of 8 / (6 D + 2 F) x (FLOP of products per byte of memory, in the same time: 125 on a v5p, more elsewhere):
# 1.7% at the 14B's width, 2.1% at the 5B's.
MOST_PADDING = 0.02

Attend = Callable[..., jax.Array]

KERNELS: dict[str, Callable[..., Attend]] = {
    "reference": reference.make_attend,
    "blockwise": blockwise.make_attend,
    "cudnn": cudnn.make_attend,
    "flash": flash.make_attend,
}
PLATFORMS = {"flash": "tpu", "cudnn": "gpu"}  # of kernels that run on one alone


def runs_on(kernel: str, platform: str) -> bool:
    """Whether a kernel runs on a JAX platform (cpu, gpu, tpu)."""
    return PLATFORMS.get(kernel, platform) == platform


def make_attend(kernel: str, table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0) -> Attend:
    """The attend function of a kernel; a ring under a mesh whose `context` does not divide the heads. Raises ValueError
    on an unknown kernel or a query that sees nothing."""
    if kernel not in KERNELS:
        raise ValueError(f"no attention kernel {kernel!r}; there are {sorted(KERNELS)}")
    attend, ring_attend = (make(table, queries, keys, window_frames) for make in (KERNELS[kernel], ring.make_attend))
    return lambda q, *others: (ring_attend if ring.needed(q.shape[2]) else attend)(q, *others)


def packed_order(kernel: str, sequence: Sequence) -> PackedOrder | None:
    """The order of tokens that a kernel wants through all layers; None where it has none, or where moving the
    tokens for each attention costs less."""
    if kernel != "flash":
        return None
    packed = PackedOrder(sequence, choose_tile(sequence, sequence))
    return packed if len(packed.order) <= (1 + MOST_PADDING) * length(sequence) else None
