"""A policy of many episodes at once, each with its own window of what was seen, each at its own block.

`start` begins a window at a first frame, `observe` puts what really happened into the place of the block that was
predicted last, `act` predicts the next block. Each takes a batch of sessions, and a session's numbers do not depend on
the others in the batch. base/batched_policy.py is what families share in JAX; base/torch_policy.py runs exports in
PyTorch.
"""

from typing import NamedTuple, Protocol

import numpy as np


class Chunk(NamedTuple):
    """One predicted block per row."""

    actions: np.ndarray  # float32 [B, actions_per_block, action_dim], normalised
    latents: np.ndarray | None = None  # float32 [B, frames_per_block, h, w, C]; None: no video is imagined


class Policy(Protocol):
    """What acts. Arrays are numpy; rows of a batch are different sessions, numbered from 0 on.

    `pictures` are what the family's `Inputs.pictures` gives: canvases uint8 [B, n, H, W, 3], or a tree of arrays.
    """

    batch_sizes: tuple[int, ...]  # each compiles, so that each is to be called before it counts

    @property
    def last_block(self) -> int | None:
        """The block after which a window is full; None: it slides on."""

    def reset(self) -> None:
        """Empties every window."""

    def start(self, sessions, pictures, text_ids, text_length) -> None:
        """Begins windows of `sessions` [B]: text_ids [B, text_length], text_length [B]."""

    def observe(self, sessions, pictures, actions, block) -> np.ndarray | None:
        """Takes what really happened in `block` int [B], 1 or above, the one predicted last: its pictures, and actions
        float32 [B, actions_per_block, action_dim] as executed, normalised.

        Returns float32 [B], root mean square of observed minus imagined latents; None where none are imagined.
        """

    def act(self, sessions, state, block, keys, actions, given) -> Chunk:
        """Predicts `block` int [B], 1 or above, where actions that are on their way are given.

        Args:
          state: float32 [B, state_dim], normalised, at the block's start.
          keys: random keys of the noise, one per row.
          actions: float32 [B, actions_per_block, action_dim], normalised; looked at where `given`, bool, is True.
        """

    def imagine(self, sessions, state, block, keys, actions, given) -> Chunk:
        """As `act` where all actions are given: the block that they lead to (forward dynamics)."""

    def label(self, sessions, state, block, keys, actions, given) -> Chunk:
        """As `act`, of the block that was imagined last, whose video is given (inverse dynamics)."""

    def decode(self, latents) -> np.ndarray:
        """Latents [B, n, h, w, C] that follow some frame -> uint8 [B, stride n, H, W, 3]."""
