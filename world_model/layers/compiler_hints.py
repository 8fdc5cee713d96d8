"""Hints for the TPU's compiler: which activations it writes to memory whole, and how they lie there. Values stay.

Left alone, the compiler joins element-wise work to a product on either side. What a product reads is then made anew for
every tile of its output, and a sum over what it writes slows it more than a pass over memory would.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

MAX_SAMPLES = 4  # samples per device up to which they are compiled one by one

materialize = jax.lax.optimization_barrier  # returns x, written before it is read; so is its gradient


@jax.custom_vjp
def materialize_gradient(x):
    """Returns x, whose gradient is written before it is read."""
    return x


materialize_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (materialize(gradient),))


def row_major(x):
    """Returns x with its last axis minor in memory.

    Without it products leave tokens minor in one pass and features in the other, with transpositions between. Where
    the partitioner divides rows of x further it returns x as it is, because the hint would make it gather.
    """
    return _row_major(x) if _is_held_whole() else x


def _is_held_whole() -> bool:
    """Whether each device holds its rows of a batch whole, so that the partitioner divides nothing more."""
    mesh = jax.sharding.get_abstract_mesh()
    return all(mesh.shape[axis] == 1 or axis in mesh.manual_axes for axis in mesh.axis_names)


@jax.custom_vjp
def _row_major(x):
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


_row_major.defvjp(lambda x: (_row_major(x), None), lambda _, gradient: (gradient,))


def join_heads(x):
    """Joins heads: [B, L, n, d] -> row-major [B, L, n d]; the gradient is written as attention kernels read it."""
    x = jnp.swapaxes(materialize_gradient(jnp.swapaxes(x, 1, 2)), 1, 2)
    return row_major(x.reshape(*x.shape[:2], -1))


def one_by_one(tree, kernel: str) -> list:
    """Splits a batch (arrays or None, each [B, ...]) into single samples; a layer takes one after another.

    Products want [B L, D] and attention kernels [B n, d, L], which is the same memory for one sample only. With two
    samples, copies between the layouts took an eighth of the 14B's step by the compiler's estimate. Weights are
    gathered once for all samples. For kernels other than flash and for larger batches the batch stays whole.
    """
    count = jax.tree.leaves(tree)[0].shape[0]
    if kernel != "flash" or count > MAX_SAMPLES or not _is_held_whole():
        return [tree]
    return [jax.tree.map(lambda x, at=at: x[at:at + 1], tree) for at in range(count)]
