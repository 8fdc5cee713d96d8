"""Inputs: from the rows of a loader to what a family's loss and sampler take.

A family says which fields a batch has, how prompts become tokens, which frozen encoders it wants and what they make of
a batch. `Inputs` is a hashable description; the encoders' arrays are passed in, {"video": {...}, "text": {...}}, so
that a compiled function has them for arguments and never holds gigabytes of constants.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from world_model.families.base.spec import Spec

Fields = dict[str, tuple]  # name -> (shape without B, dtype)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What families share. `encoders` has those that the config chose, by part."""

    spec: Spec

    stored_from: ClassVar[tuple[str, ...]] = ()  # fields that `store` reads, and that a stored row does without

    @property
    def encoders(self) -> dict[str, Any]:
        """The frozen encoders by part, without those that are absent."""
        return {}

    def batch_fields(self) -> Fields:
        """What a row of the loader holds."""
        raise NotImplementedError

    def stored_fields(self) -> Fields:
        """What a row holds whose encoders have run already (launch.precompute)."""
        return self.batch_fields()

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        """(int32 [text_length], number of tokens) of a prompt. Raises ValueError where it is too long."""
        raise NotImplementedError

    def needs_when_stored(self) -> tuple[str, ...]:
        """Parts of the encoders whose arrays are wanted beside a stored row."""
        return ()

    def encode(self, frozen: dict, batch: dict):
        """What the loss takes, from a batch of either kind."""
        raise NotImplementedError

    def conditions(self, frozen: dict, example):
        """What the sampler starts from, for a held-out example: here, what the loss takes."""
        return example

    def store(self, frozen: dict, batch: dict) -> dict[str, jax.Array]:
        """What the encoders make of `stored_from`, bfloat16."""
        return {}

    def pictures(self, robot, views: dict[str, np.ndarray]):
        """What a policy sees of a robot's cameras, uint8 [n, H, W, 3] by name, oldest first."""
        return robot.canvas(views)

    def picture_shapes(self):
        """Abstract arrays of what `pictures` gives of one moment."""
        raise NotImplementedError

    def start(self, frozen: dict, pictures, text_ids, text_length):
        """What a policy starts an episode from: a tree of arrays, from what `pictures` gave of first moments, text_ids
        [B, text_length], text_length [B]."""
        raise NotImplementedError

    def encode_block(self, frozen: dict, pictures):
        """What a policy takes of a block's pictures, once they have been seen."""
        return pictures

    def decode_block(self, frozen: dict, latents):
        """The inverse of `encode_block` where video is imagined: -> uint8 [B, stride n, H, W, 3]."""
        raise NotImplementedError
