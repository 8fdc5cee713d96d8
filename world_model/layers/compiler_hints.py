"""Which activations a TPU writes to memory whole, and how they lie there: hints for its compiler, without other effect.

Left alone, the compiler joins element-wise work to a product on either side. What a product reads is then made anew for
every tile of its output, and a sum over what it writes slows it more than a pass over memory would.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

MAX_SAMPLES = 4  # samples a device, which are compiled one by one

materialize = jax.lax.optimization_barrier  # x, written before it is read; its gradient too


@jax.custom_vjp
def materialize_gradient(x):
    """x; its gradient is written before it is read."""
    return x


materialize_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (materialize(gradient),))


def row_major(x):
    """x with its last axis minor, where each device holds its rows of x whole: for the partitioner's sake, which would
    gather it else. Products would leave tokens minor in one pass and features in the other, transpositions between."""
    return _row_major(x) if _held_whole() else x


def _held_whole() -> bool:
    """Whether each device holds its rows of a batch whole, and the partitioner divides nothing more."""
    mesh = jax.sharding.get_abstract_mesh()
    return all(mesh.shape[axis] == 1 or axis in mesh.manual_axes for axis in mesh.axis_names)


@jax.custom_vjp
def _row_major(x):
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


_row_major.defvjp(lambda x: (_row_major(x), None), lambda _, gradient: (gradient,))


def join_heads(x):
    """[B, L, n, d] -> row-major [B, L, n d]; its gradient is written head by head, as attention kernels read it."""
    x = jnp.swapaxes(materialize_gradient(jnp.swapaxes(x, 1, 2)), 1, 2)
    return row_major(x.reshape(*x.shape[:2], -1))


def one_by_one(tree, kernel: str) -> list:
    """A batch (arrays or None, [B, ...] each) as single samples, for blocks that take one after another with weights
    gathered once.

    Products want [B L, D], attention kernels [B n, d, L], and only of one sample is that the same memory: of two,
    copies between them took an eighth of the 14B's step by the compiler's estimate.
    """
    count = jax.tree.leaves(tree)[0].shape[0]
    if kernel != "flash" or count > MAX_SAMPLES or not _held_whole():
        return [tree]
    return [jax.tree.map(lambda x, at=at: x[at:at + 1], tree) for at in range(count)]
