"""What the backward pass recomputes instead of keeping, by name (`train.remat`)."""

from collections.abc import Callable

import jax

# name -> jax.checkpoint policy: which values inside a block are kept for the backward pass.
POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,  # the block's input alone: least memory
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep outputs of weight products
    # Keep every matrix product, attention's too: element-wise work alone is done again. The default: a loop stacks
    # what it keeps, and on a CPU writing and reading that costs more than the work.
    "products": jax.checkpoint_policies.dots_saveable,
}


def remat(fn: Callable, name: str) -> Callable:
    """`fn` (a transformer block: the body of the scan over layers) under the named policy; `none` keeps all.

    Raises ValueError listing the names where `name` is none of them.
    """
    if name == "none":
        return fn
    if name not in POLICIES:
        raise ValueError(f"train.remat = {name!r} is no policy; there are none, {', '.join(POLICIES)}")
    # Inside a scan forward and backward are two loops, which no common-subexpression pass merges: no barrier.
    return jax.checkpoint(fn, policy=POLICIES[name], prevent_cse=False)
