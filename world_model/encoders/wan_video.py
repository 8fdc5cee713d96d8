"""Wan's autoencoders as a `VideoCodec`: weights from a file, long videos chunk by chunk, large frames tile by tile."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from world_model import functional
from world_model.encoders import names as encoder_names
from world_model.encoders.names import TensorTable
from world_model.encoders.tiling import tiled
from world_model.encoders.wan_vae import TEMPORAL, WanVae, WanVaeSpec
from world_model.encoders.weights import NO_FILE, FromFile, WeightsFile


@dataclasses.dataclass(frozen=True)
class WanVideo(FromFile):
    """A `VideoCodec` by one of Wan's autoencoders; arrays are those of `WanVae`, of `dtype`."""

    spec: WanVaeSpec
    weights: WeightsFile = NO_FILE
    dtype: str = "float32"
    chunk: int = 1  # latent frames at once after the first: speed against memory; 0: all
    tile: int = 0  # latent pixels on a side of a tile; 0: frames are taken whole

    network, temporal_stride = WanVae, TEMPORAL

    @property
    def channels(self) -> int:
        """The number of latent channels, C."""
        return self.spec.latent_channels

    @property
    def spatial_stride(self) -> int:
        """Pixels of the video per latent pixel."""
        return self.spec.spatial_stride

    @property
    def tables(self) -> dict[str, TensorTable]:
        """See `FromFile`."""
        return encoder_names.vae(self.spec)

    def encode(self, params: dict, video: jax.Array) -> jax.Array:
        """float [B, T, H, W, 3] in [-1, 1] -> normalised latents float32 [B, F, h, w, C], which are the means. Raises
        ValueError where T is not 4k + 1 or a side not a multiple of the stride."""
        self._check(video.shape)
        step = functools.partial(self.encode_chunk, params)
        return self._tiled(lambda x: _in_chunks(step, x, self.chunk * TEMPORAL), video, self.spatial_stride, 1)

    def encode_first(self, params: dict, frame: jax.Array, frames: int) -> jax.Array:
        """See `VideoCodec`."""
        grey = jnp.zeros((len(frame), frames - 1, *frame.shape[2:]), frame.dtype)
        return self.encode(params, jnp.concatenate([frame, grey], axis=1))

    def decode(self, params: dict, latents: jax.Array) -> jax.Array:
        """Normalised latents [B, F, h, w, C] -> float32 [B, T, H, W, 3], clipped to [-1, 1]."""
        step = functools.partial(self.decode_chunk, params)
        return self._tiled(lambda x: _in_chunks(step, x, self.chunk), latents, 1, self.spatial_stride)

    def encode_chunk(self, params: dict, video: jax.Array, kept: tuple | None = None):
        """Encodes a stream's next frames, 1 + 4k at first (kept is None), then 4k: (latents, next call's `kept`)."""
        return functional.bind(self.module, params).encode(video.astype(self.dtype), kept)

    def decode_chunk(self, params: dict, latents: jax.Array, kept: tuple | None = None):
        """Decodes a stream's next latents, any number of them: (frames, next call's `kept`)."""
        return functional.bind(self.module, params).decode(latents, kept)

    def _tiled(self, fn: Callable, x: jax.Array, taken: int, given: int) -> jax.Array:
        return tiled(fn, x, self.tile, taken, given) if self.tile else fn(x)

    def _check(self, shape: tuple[int, ...]) -> None:
        _, frames, height, width, _ = shape
        if frames % TEMPORAL != 1 or height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(f"video of {frames} frames, {height} x {width} pixels: frames must be {TEMPORAL}k + 1, "
                             f"sides multiples of {self.spatial_stride}")


def _in_chunks(step: Callable, x: jax.Array, size: int) -> jax.Array:
    """Runs step(chunk, kept) -> (y, kept) over frame 0, then over `size` frames at a time in a loop; 0: all at once."""
    if not size:
        return step(x, None)[0]
    first, kept = step(x[:, :1], None)
    loops, parts = (x.shape[1] - 1) // size, [first]
    if loops:
        chunks = x[:, 1:1 + loops * size].reshape(x.shape[0], loops, size, *x.shape[2:]).swapaxes(0, 1)
        kept, stacked = jax.lax.scan(lambda kept, chunk: step(chunk, kept)[::-1], kept, chunks)
        parts.append(stacked.swapaxes(0, 1).reshape(x.shape[0], -1, *stacked.shape[3:]))
    if rest := x.shape[1] - 1 - loops * size:
        parts.append(step(x[:, -rest:], kept)[0])
    return jnp.concatenate(parts, axis=1)
