"""The sizes that every family has, and what follows from them. A family adds its own."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from world_model.attention.visibility import Table
from world_model.batch import Layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Sizes of a model. Their values come from the config's `model` section, where each has its unit."""

    tables: ClassVar[Mapping[str, Table]] = {}  # visibility tables of the family, by name

    layout: Layout
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    action_dim: int
    state_dim: int = 0
    attention: str = "blockwise"
    remat: str = "products"
    matmul: str = "plain"

    def __post_init__(self):
        for name, most in (("dim", 2**20), ("ffn_dim", 2**20), ("num_heads", 2**12), ("num_layers", 2**12)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"model.{name} = {getattr(self, name)}: expected 1 to {most}")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"model.dim = {self.dim} does not divide into model.num_heads = {self.num_heads} heads "
                             "of even width")

    @property
    def head_dim(self) -> int:
        """The width d of an attention head."""
        return self.dim // self.num_heads

    @property
    def training_tokens(self) -> int:
        """Tokens of one training sample that go through the stack, about: what activations' memory is reckoned from."""
        raise NotImplementedError

    def kept_values(self, wide: float, hidden: float) -> float:
        """Counts the values of a sample that a policy keeps, of each token and layer so many D-wide and MLP-wide arrays
        (parallel/remat.py)."""
        return self.training_tokens * self.num_layers * (wide * self.dim + hidden * self.ffn_dim)

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame of a window: what a mixture counted in tokens is weighed by."""
        raise NotImplementedError
