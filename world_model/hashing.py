"""A hash of an array's elements, which no sharding, chunking or file changes, and every changed bit does.

The bits of each element are mixed with its number, one to one, and the results are added up mod 2^32, in two ways. So a
mesh hashes its shards where they lie. It finds damage; it does not stop somebody who means to deceive.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

CHUNK = 2**16  # elements that the host hashes at once: they stay in its cache
_LANES = (np.uint32(0), np.uint32(0x9E3779B9))


def hashes(arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, str]:
    """Hashes named arrays, those on devices where they lie; 16 hexadecimal digits each. All hosts call it together."""
    sums = {name: _sums_on(getattr(x.sharding, "mesh", None))(x) if isinstance(x, jax.Array) else sums_of(x)
            for name, x in arrays.items()}
    return {name: text(pair) for name, pair in jax.device_get(sums).items()}


def text(sums: np.ndarray) -> str:
    """Writes the two sums as 16 hexadecimal digits."""
    return "".join(f"{int(value):08x}" for value in sums)


def sums_of(x: np.ndarray, start: int = 0) -> np.ndarray:
    """The two sums, uint32 [2], of a host's array whose first element has the number `start` in a larger one."""
    flat, total = np.ascontiguousarray(x).reshape(-1).view(_unsigned(x.dtype)), np.zeros(2, np.uint32)
    for begin in range(0, flat.size, CHUNK):
        bits = flat[begin:begin + CHUNK].astype(np.uint32)
        numbers = np.uint32((start + begin) % 2**32) + np.arange(bits.size, dtype=np.uint32)
        total += np.stack([_terms(bits, numbers, lane).sum(dtype=np.uint32) for lane in _LANES])
    return total


@functools.cache
def _sums_on(mesh):
    """The jitted sums of a device array, on every device of its mesh."""
    def sums(x):
        bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, _unsigned(x.dtype))
        bits = bits.astype(jnp.uint32)
        numbers, stride = jnp.zeros(x.shape, jnp.uint32), 1
        for axis in reversed(range(x.ndim)):
            numbers += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
            stride *= x.shape[axis]
        return jnp.stack([_terms(bits, numbers, lane).sum(dtype=jnp.uint32) for lane in _LANES])

    return jax.jit(sums, out_shardings=NamedSharding(mesh, PartitionSpec()) if mesh is not None else None)


def _unsigned(dtype) -> np.dtype:
    """The unsigned integer of a dtype's width; wider elements are two of 4 bytes."""
    return np.dtype(f"uint{8 * min(4, np.dtype(dtype).itemsize)}")


def _terms(bits, numbers, lane):
    """What each element adds: one to one in its bits."""
    return _mix(bits ^ _mix(numbers ^ lane))


def _mix(x):
    """A bijection of uint32 with good avalanche (the public-domain "lowbias32")."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
