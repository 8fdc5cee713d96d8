"""Sizes of a model that imagines video on Wan's backbone, and what it predicts."""

import dataclasses
from typing import NamedTuple

import jax

from world_model.attention.visibility import Table, get_table
from world_model.families.base.spec import Spec

PATCH = 2  # rows and columns of a video token; time is not patched


class Velocity(NamedTuple):
    """eps - x0 as predicted."""

    video: jax.Array  # [B, F, h, w, C], h and w even
    action: jax.Array | None  # [B, N, action_dim]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSpec(Spec):
    """Latent frames become tokens of 2 x 2 latent pixels; text is seen by cross-attention."""

    latent_height: int
    latent_width: int
    latent_channels: int
    freq_dim: int
    text_dim: int
    text_length: int
    visibility: str
    qk_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.num_layers < 2:
            raise ValueError(f"model.num_layers = {self.num_layers}: at least 2 (the last layer stands apart)")
        self.table()

    def table(self, name: str | None = None) -> Table:
        """The visibility table of that name, the training's if None. Raises ValueError listing the names there are."""
        return get_table(name or self.visibility, self.tables)

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of a frame; an odd last latent row or column is left out."""
        return self.latent_height // PATCH, self.latent_width // PATCH

    @property
    def tokens_per_frame(self) -> int:
        """Video tokens of one latent frame."""
        return self.grid[0] * self.grid[1]

    @property
    def training_tokens(self) -> int:
        """See `Spec`: a clean and a noisy copy of the video."""
        return 2 * self.layout.latent_frames * self.tokens_per_frame

    @property
    def frame_tokens(self) -> int:
        return self.tokens_per_frame

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, C) of a latent frame."""
        return self.latent_height, self.latent_width, self.latent_channels
