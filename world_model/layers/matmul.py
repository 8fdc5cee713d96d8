"""Products of tokens with the weights of a layer's linears (`train.matmul`): as they are, or in int8.

In int8 a TPU multiplies twice as fast as in bfloat16. The forward pass scales each token and each column of a weight by
its largest magnitude and rounds it to 255 levels; gradients are those of the unrounded product (straight through), in
the compute dtype. Only training uses it: evaluation, rollouts and exports multiply plainly.
"""

import jax
import jax.numpy as jnp

LEVELS = 127  # levels of int8 on each side of zero


def plain(x, kernel):
    """Multiplies x [..., inputs] by kernel [inputs, outputs].

    Batch and tokens are merged first, so that the kernel's gradient sums over one axis and the compiler need not
    transpose a copy of x for it. On several devices both may be sharded, and merging them would gather.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape[axis] > 1 for axis in mesh.axis_names if axis not in mesh.manual_axes):
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def int8(x, kernel):
    """Multiplies like `plain`, but rounds both sides to int8 and sums in int32."""
    (tokens, token_scales), (weights, weight_scales) = rounded(x, axis=-1), rounded(kernel, axis=0)
    sums = jax.lax.dot_general(tokens, weights, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return (sums.astype(jnp.float32) * token_scales * weight_scales).astype(x.dtype)


def _forward(x, kernel):
    return int8(x, kernel), (x, kernel)


def _backward(kept, gradient):
    return jax.vjp(plain, *kept)[1](gradient)


int8.defvjp(_forward, _backward)


def rounded(x, axis: int):
    """Rounds x to (int8 numbers, float32 scales along `axis`), whose product is about x."""
    scales = jnp.max(jnp.abs(x), axis=axis, keepdims=True).astype(jnp.float32) / LEVELS
    scales = jnp.where(scales > 0, scales, 1.0)
    return jnp.round(x.astype(jnp.float32) / scales).astype(jnp.int8), scales


PRODUCTS = {"plain": plain, "int8": int8}


def get_product(name: str):
    """Returns the product of a name. Raises ValueError listing the names where `name` is none of them."""
    if name not in PRODUCTS:
        raise ValueError(f"train.matmul = {name!r}: there are {', '.join(PRODUCTS)}")
    return PRODUCTS[name]
