"""The sizes that every family has, and what follows from them. A family adds its own."""

import dataclasses

from world_model.attention import visibility
from world_model.batch import Layout

PATCH = 2  # rows and columns of a video token; time is not patched


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Sizes; defaults and units in configs/base.py."""

    layout: Layout
    latent_height: int
    latent_width: int
    latent_channels: int
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int
    text_dim: int
    text_length: int
    action_dim: int
    visibility: str
    qk_scale: float = 1.0
    attention: str = "blockwise"
    remat: str = "products"
    matmul: str = "plain"

    def __post_init__(self):
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"model.dim = {self.dim} does not divide into model.num_heads = {self.num_heads} heads "
                             "of even width")
        if self.num_layers < 2:
            raise ValueError(f"model.num_layers = {self.num_layers}: at least 2 (the last block stands apart)")
        visibility.get_table(self.visibility)

    @property
    def head_dim(self) -> int:
        """d."""
        return self.dim // self.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of a frame; an odd last latent row or column is left out."""
        return self.latent_height // PATCH, self.latent_width // PATCH

    @property
    def tokens_per_frame(self) -> int:
        """Video tokens of one latent frame."""
        return self.grid[0] * self.grid[1]

    @property
    def stored(self) -> dict:
        """What a batch of precomputed features holds beside latents and text: arguments of encoded_batch_spec."""
        return {}
