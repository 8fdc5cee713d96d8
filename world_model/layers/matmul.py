"""Products of tokens with the weights of a block's linears (`train.matmul`): as they are, or in int8.

In int8 a TPU multiplies twice as fast as in bfloat16. Each token and each column of a weight is scaled by its largest
magnitude and rounded to 255 levels on the way forward; gradients are those of the unrounded product (straight through),
in the compute dtype. For training alone: evaluation, rollouts and exports multiply plainly.
"""

import jax
import jax.numpy as jnp

LEVELS = 127  # of int8, on each side of zero


def plain(x, kernel):
    """x [..., inputs] @ kernel [inputs, outputs].

    Batch and tokens are merged first: the kernel's gradient then sums over one axis and the compiler need not
    transpose a copy of x for it. On several devices both may be sharded, and merging them would gather.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape[axis] > 1 for axis in mesh.axis_names if axis not in mesh.manual_axes):
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def int8(x, kernel):
    """As `plain`, of rounded numbers; sums in int32."""
    (tokens, token_scales), (weights, weight_scales) = rounded(x, axis=-1), rounded(kernel, axis=0)
    sums = jax.lax.dot_general(tokens, weights, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return (sums.astype(jnp.float32) * token_scales * weight_scales).astype(x.dtype)


def _forward(x, kernel):
    return int8(x, kernel), (x, kernel)


def _backward(kept, gradient):
    return jax.vjp(plain, *kept)[1](gradient)


int8.defvjp(_forward, _backward)


def rounded(x, axis: int):
    """(int8 numbers, their float32 scales along `axis`): x is about numbers x scales."""
    scales = jnp.max(jnp.abs(x), axis=axis, keepdims=True).astype(jnp.float32) / LEVELS
    scales = jnp.where(scales > 0, scales, 1.0)
    return jnp.round(x.astype(jnp.float32) / scales).astype(jnp.int8), scales


PRODUCTS = {"plain": plain, "int8": int8}


def get_product(name: str):
    """Raises ValueError listing the names where `name` is none of them."""
    if name not in PRODUCTS:
        raise ValueError(f"train.matmul = {name!r}: there are {', '.join(PRODUCTS)}")
    return PRODUCTS[name]
