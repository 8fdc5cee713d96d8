"""Encoders whose outputs come with the batch: nothing is encoded during training.

Latents and features do not change between epochs; a run that stores them once needs no frozen encoder on its chips.
The batch then holds `latents`, `first_latents`, `text_features` and `image_features` (world_model/batch.py).
"""

import dataclasses

from world_model.encoders.weights import WithoutArrays


@dataclasses.dataclass(frozen=True)
class PrecomputedVideo(WithoutArrays):
    """A `VideoCodec` of which only the geometry is known here."""

    channels: int
    spatial_stride: int
    temporal_stride: int = 4

    def encode(self, params: dict, video):
        """Raises ValueError: there is nothing here to encode with."""
        raise ValueError("encoders.video stands for precomputed latents: the batch must hold 'latents', not 'video'")

    encode_first = decode = encode


@dataclasses.dataclass(frozen=True)
class PrecomputedText(WithoutArrays):
    """A `TextEncoder` of which only the sizes are known here."""

    text_length: int
    text_dim: int

    def tokenize(self, prompt: str):
        """Raises ValueError: there is nothing here to encode with."""
        raise ValueError("encoders.text stands for precomputed features: the batch must hold 'text_features'")

    def encode(self, params: dict, ids, length):
        """Raises ValueError likewise."""
        self.tokenize("")
