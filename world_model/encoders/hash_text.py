"""A text encoder without weights: every word is a fixed pseudo-random vector, a function of its spelling.

It tells instructions apart, which is all a small experiment asks; it knows neither meaning nor word order.
"""

import dataclasses
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from world_model.encoders.tokenizer import padded
from world_model.encoders.weights import WithoutArrays


@dataclasses.dataclass(frozen=True)
class HashText(WithoutArrays):
    """A `TextEncoder` that hashes words and punctuation marks, lower-cased, to ids in 1..2^31 - 1; 0 pads."""

    text_length: int
    text_dim: int

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        """Returns (int32 [text_length], number of words). Raises ValueError where the prompt has more."""
        words = re.findall(r"\w+|[^\w\s]", prompt.lower())
        return padded(prompt, [1 + zlib.crc32(word.encode()) % (2**31 - 1) for word in words], self.text_length)

    def encode(self, params: dict, ids: jax.Array, length: jax.Array) -> jax.Array:
        """int32 [B, text_length], int32 [B] -> float32 [B, text_length, text_dim], mean 0, variance 1 per feature;
        zero past each length."""
        column = jnp.arange(self.text_dim, dtype=jnp.uint32) * jnp.uint32(0x85EBCA77)
        bits = _mix(jnp.asarray(ids, jnp.uint32)[..., None] * jnp.uint32(0x9E3779B1) + column)
        uniform = (bits >> 8).astype(jnp.float32) * 2**-23 - 1  # [-1, 1)
        real = jnp.arange(self.text_length) < jnp.asarray(length)[..., None]
        return jnp.where(real[..., None], np.float32(3**0.5) * uniform, 0)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 with good avalanche (the public-domain "lowbias32"): the same in every JAX release."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
