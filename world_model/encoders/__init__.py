"""Frozen encoders behind two small interfaces: video codec and text encoder.

An encoder is a hashable description; its arrays are a plain dict that callers keep and pass back in.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from world_model.encoders.hash_text import HashText
from world_model.encoders.patch_pca import PatchPca
from world_model.encoders.precomputed import PrecomputedText, PrecomputedVideo


class VideoCodec(Protocol):
    """A causal video autoencoder with the contract of Wan's: frame 0 is a latent, every four frames after it one.

    Latents are normalised per channel. A latent depends on no later frame.
    """

    channels: int  # C
    temporal_stride: int  # raw frames per latent frame after the first
    spatial_stride: int  # pixels per latent pixel

    def init(self, clips: Callable[[], np.ndarray]) -> dict:
        """The arrays. `clips()` gives uint8 [n, T, H, W, 3] to codecs that are fitted on data."""

    def encode(self, params: dict, video: jax.Array) -> jax.Array:
        """float [B, T, H, W, 3] in [-1, 1], T = 4k + 1 -> [B, F, h, w, C]. ValueError where sizes do not divide."""

    def encode_first(self, params: dict, frame: jax.Array, frames: int) -> jax.Array:
        """float [B, 1, H, W, 3] -> [B, F, h, w, C]: latents of the frame followed by mid-grey up to `frames` frames."""

    def decode(self, params: dict, latents: jax.Array) -> jax.Array:
        """[B, F, h, w, C] -> float [B, T, H, W, 3], clipped to [-1, 1]."""


class TextEncoder(Protocol):
    """Prompt -> token ids on the host, token ids -> features on the device."""

    text_length: int  # tokens
    text_dim: int  # width of the features

    def init(self) -> dict:
        """The arrays."""

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        """(int32 [text_length], number of tokens). ValueError where the prompt has more than text_length."""

    def encode(self, params: dict, ids: jax.Array, length: jax.Array) -> jax.Array:
        """int32 [B, text_length], int32 [B] -> float32 [B, text_length, text_dim], zero past each length."""


def make_video_codec(name: str, *, channels: int) -> VideoCodec:
    """Raises ValueError on an unknown name."""
    made = {"patch_pca": lambda: PatchPca(channels),
            "wan21_latents": lambda: PrecomputedVideo(channels, spatial_stride=8),
            "wan22_latents": lambda: PrecomputedVideo(channels, spatial_stride=16)}
    if name not in made:
        raise ValueError(f"encoders.video = {name!r}: expected one of {', '.join(made)}")
    return made[name]()


def make_text_encoder(name: str, *, text_length: int, text_dim: int) -> TextEncoder:
    """Raises ValueError on an unknown name."""
    made = {"hash": HashText, "features": PrecomputedText}
    if name not in made:
        raise ValueError(f"encoders.text = {name!r}: expected one of {', '.join(made)}")
    return made[name](text_length, text_dim)
