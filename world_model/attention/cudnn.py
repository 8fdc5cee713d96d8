"""Blockwise spans through cuDNN's flash attention (NVIDIA GPUs, bfloat16 or float16): scores are never written out.

cuDNN takes a number of valid keys per sample, so valid keys are moved to the front (attention does not depend on the
order of keys). That costs a copy of them, where a mask would be read for every pair and would get a gradient. Only a
mask of segments that is made at run time is passed as such a mask, for every pair. JAX trains even lengths alone, so
odd ones get one more token that is unseen. world_model/parallel/remat.py keeps what the backward pass reads.
"""

import functools

import jax
import jax.numpy as jnp

from world_model.attention import blockwise
from world_model.parallel import sharding


def flash(q, k, v, key_valid=None, pairs=None, implementation: str = "cudnn"):
    """Computes `blockwise.dense` by an `implementation` of jax.nn.dot_product_attention ("xla" runs on any device).

    Raises NotImplementedError where cuDNN does not take the dtype or the width of a head (a multiple of 8, at most
    128; 256 from Hopper on), and RuntimeError where there is no cuDNN.
    """
    queries, keys = q.shape[1], k.shape[1]
    if keys == 1:  # softmax over one key is 1
        return jnp.broadcast_to(v, q.shape)
    mask = count = None
    if pairs is not None:
        pairs = pairs if key_valid is None else pairs & key_valid[:, None]
        mask, key_valid = (_pad_to_even(pairs, 1, 2)[:, None], None) if pairs.shape[1] > 1 else (None, pairs[:, 0])
    if key_valid is not None:
        order = jnp.argsort(~key_valid, axis=1)  # stable
        k, v = _reorder(k, order), _reorder(v, order)
        count = jnp.maximum(key_valid.sum(axis=1, dtype=jnp.int32), 1)  # a blind query meets one key that is not valid
    elif keys % 2 and mask is None:
        count = jnp.full(len(k), keys, jnp.int32)
    return _kernel(implementation, _pad_to_even(q, 1), _pad_to_even(k, 1), _pad_to_even(v, 1), mask, count)[:, :queries]


def _kernel(implementation: str, q, k, v, mask, count):
    """Runs cuDNN's kernel; in a training step, where the partitioner may not split it, on each device's heads."""
    def attend(q, k, v, mask, count):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, key_value_seq_lengths=count,
                                            implementation=implementation)

    if jax.sharding.get_abstract_mesh().manual_axes:
        whole = (None, None, "attention_heads")
        attend = sharding.on_each_device(attend, (whole, whole, whole, (), ()), whole)
    return attend(q, k, v, mask, count)


@jax.custom_vjp
def _reorder(x, order):
    """Reorders x [B, L, n, d] along L, per sample, to an even length; the last place of an odd one is zero. The
    backward pass reads in the inverse order, where JAX would add to zeros in any order."""
    return _take(x, jnp.pad(order, ((0, 0), (0, x.shape[1] % 2)), constant_values=x.shape[1]))


def _take(x, order):
    return jax.vmap(lambda x, order: x.at[order].get(mode="fill", fill_value=0))(x, order)


_reorder.defvjp(lambda x, order: (_reorder(x, order), order),
                lambda order, g: (_take(g, jnp.argsort(order, axis=1)), None))


def _pad_to_even(x, *axes: int):
    """Appends a zero (False to a mask) where a length is odd."""
    return jnp.pad(x, [(0, x.shape[i] % 2 if i in axes else 0) for i in range(x.ndim)])


make_attend = functools.partial(blockwise.make_attend, attention=flash)
