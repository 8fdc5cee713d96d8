"""Frozen encoders behind three small interfaces: video codec, text encoder and image encoder.

An encoder is a hashable description; its arrays are a plain dict that callers keep and pass back in. What a checkpoint
keeps of them (`init`) is the arrays where they were fitted on data, a fingerprint where a file holds them.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from world_model.encoders.clip_vit import ClipImage
from world_model.encoders.hash_text import HashText
from world_model.encoders.patch_pca import PatchPca
from world_model.encoders.precomputed import PrecomputedText, PrecomputedVideo
from world_model.encoders.token_ids import TokenIds
from world_model.encoders.umt5 import Umt5Text
from world_model.encoders.wan_vae import WAN21, WAN22
from world_model.encoders.wan_video import WanVideo
from world_model.encoders.weights import NO_FILE, WeightsFile
from world_model.parallel import sharding
from world_model.parallel.axes import ENCODER_RULES, axes_of


class Encoder(Protocol):
    """What a checkpoint keeps of an encoder, and its arrays."""

    def init(self, clips: Callable[[], np.ndarray]) -> dict:
        """Makes what a checkpoint keeps. `clips()` gives uint8 [n, T, H, W, 3] to encoders that are fitted on data."""

    def load(self, kept: dict) -> dict:
        """Makes the arrays of what `init` gave."""


class VideoCodec(Encoder, Protocol):
    """A causal video autoencoder with the contract of Wan's: frame 0 is one latent, every four frames after it are one.

    Latents are normalised per channel. A latent depends on no later frame.
    """

    channels: int  # C
    temporal_stride: int  # raw frames per latent frame after the first
    spatial_stride: int  # pixels per latent pixel

    def encode(self, params: dict, video: jax.Array) -> jax.Array:
        """float [B, T, H, W, 3] in [-1, 1], T = 4k + 1 -> [B, F, h, w, C]. ValueError where sizes do not divide."""

    def encode_first(self, params: dict, frame: jax.Array, frames: int) -> jax.Array:
        """float [B, 1, H, W, 3] -> [B, F, h, w, C]: latents of the frame followed by mid-grey up to `frames` frames."""

    def decode(self, params: dict, latents: jax.Array) -> jax.Array:
        """[B, F, h, w, C] -> float [B, T, H, W, 3], clipped to [-1, 1]."""


class TextEncoder(Encoder, Protocol):
    """Makes token ids of a prompt on the host, and features of token ids on the device."""

    text_length: int  # tokens
    text_dim: int  # width of the features

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        """Returns (int32 [text_length], number of tokens). ValueError where the prompt has more than text_length."""

    def encode(self, params: dict, ids: jax.Array, length: jax.Array) -> jax.Array:
        """int32 [B, text_length], int32 [B] -> float32 [B, text_length, text_dim], zero past each length."""


class ImageEncoder(Encoder, Protocol):
    """Makes features of a picture's patches."""

    image_tokens: int
    image_dim: int  # width of the features

    def encode(self, params: dict, frames: jax.Array) -> jax.Array:
        """float [B, H, W, 3] in [-1, 1] -> float32 [B, image_tokens, image_dim]."""


def make_video_codec(name: str, *, channels: int, weights: WeightsFile = NO_FILE, dtype: str = "float32",
                     chunk: int = 1, tile: int = 0) -> VideoCodec:
    """Makes the codec of that name. Arguments from `weights` on are for codecs whose weights are in files. Raises
    ValueError on an unknown name, or where the codec has other than `channels` channels."""
    def wan(spec):
        return WanVideo(spec, weights, dtype, chunk, tile)

    makers = {"patch_pca": lambda: PatchPca(channels),
              "wan21": lambda: wan(WAN21),
              "wan22": lambda: wan(WAN22),
              "wan21_latents": lambda: PrecomputedVideo(channels, spatial_stride=8),
              "wan22_latents": lambda: PrecomputedVideo(channels, spatial_stride=16)}
    codec = _chosen("video", name, makers)
    if codec.channels != channels:
        raise ValueError(f"model.latent_channels = {channels}, but encoders.video = {name!r} has {codec.channels}")
    return codec


def make_text_encoder(name: str, *, text_length: int, text_dim: int, weights: WeightsFile = NO_FILE,
                      tokenizer: str = "", dtype: str = "float32") -> TextEncoder:
    """Makes the text encoder of that name, as `make_video_codec` does; tokenizer: a local file."""
    makers = {"hash": lambda: HashText(text_length, text_dim),
              "umt5": lambda: Umt5Text(text_length, weights=weights, tokenizer=tokenizer, dtype=dtype),
              "features": lambda: PrecomputedText(text_length, text_dim)}
    encoder = _chosen("text", name, makers)
    if encoder.text_dim != text_dim:
        raise ValueError(f"model.text_dim = {text_dim}, but encoders.text = {name!r} gives {encoder.text_dim}")
    return encoder


def make_image_encoder(name: str, *, image_tokens: int, image_dim: int, weights: WeightsFile = NO_FILE,
                       dtype: str = "float32") -> ImageEncoder | None:
    """Makes the image encoder of that name, as `make_video_codec` does; None for "none": no image features, or
    precomputed ones."""
    encoder = _chosen("image", name, {"none": lambda: None, "clip": lambda: ClipImage(weights=weights, dtype=dtype)})
    if encoder and (encoder.image_tokens, encoder.image_dim) != (image_tokens, image_dim):
        raise ValueError(f"model.image_tokens x image_dim = {image_tokens} x {image_dim}, but encoders.image = "
                         f"{name!r} gives {encoder.image_tokens} x {encoder.image_dim}")
    return encoder


def make_token_ids(name: str, *, text_length: int, vocab_size: int, tokenizer: str = "") -> TokenIds:
    """Makes what cuts prompts into the ids that a model embeds itself; tokenizer: a local file. Raises ValueError on an
    unknown name."""
    files = {"tokenizer": lambda: tokenizer, "bytes": lambda: None}
    return TokenIds(text_length, vocab_size, _chosen("tokens", name, files))


def _chosen(kind: str, name: str, makers: dict[str, Callable]):
    if name not in makers:
        raise ValueError(f"encoders.{kind} = {name!r}: expected one of {', '.join(makers)}")
    return makers[name]()


def place(frozen: dict, mesh: jax.sharding.Mesh) -> dict:
    """Encoders' numpy arrays {part: {name: array}} over the mesh, each device given its share alone."""
    def placed(arrays: dict) -> dict:
        where = sharding.shardings(axes_of(arrays, ENCODER_RULES), {name: a.shape for name, a in arrays.items()}, mesh)
        return {name: jax.make_array_from_callback(a.shape, where[name], lambda index, a=a: a[index])
                for name, a in arrays.items()}

    return {part: placed(arrays) for part, arrays in frozen.items()}
