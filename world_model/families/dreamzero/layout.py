"""DreamZero's sizes, what stands where in a sequence, and at which positions (arXiv 2602.15922;
docs/references/dreamzero.md)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from world_model.attention import tokens
from world_model.attention.tokens import CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, STATE, Group
from world_model.attention.visibility import Table
from world_model.families.dreamzero.visibility import TABLES
from world_model.families.wan.spec import VideoSpec
from world_model.layers import rotary

MASK_CHANNELS = 4  # channels of the first-frame mask: one per raw frame of a latent
VIDEO_GROUPS = (CLEAN_VIDEO, NOISY_VIDEO)
HEADS_READ = (NOISY_VIDEO, NOISY_ACTION)
GROUPS = (*VIDEO_GROUPS, NOISY_ACTION, STATE)  # the order of a sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamZeroSpec(VideoSpec):
    """Sizes; defaults and units in config.py."""

    tables: ClassVar[Mapping[str, Table]] = TABLES

    concat_first_frame: bool
    image_dim: int
    image_tokens: int
    state_dim: int
    action_hidden_dim: int
    visibility: str = "dreamzero"
    rollout_visibility: str = "dreamzero"
    window_blocks: int = 4
    lora_rank: int = 0
    lora_alpha: float = 4.0
    lora_pattern: str = r"(self|cross)_attn\.[qkvo]$|mlp\.fc[12]$"

    def __post_init__(self):
        super().__post_init__()
        self.table(self.rollout_visibility)

    @property
    def input_channels(self) -> int:
        """Channels that are patchified."""
        extra = MASK_CHANNELS + self.latent_channels if self.concat_first_frame else 0
        return self.latent_channels + extra

    @property
    def window_frames(self) -> int:
        """W, frames that a clean block sees, counted as published; 0 = all."""
        return self.window_blocks * self.layout.frames_per_block + 1 if self.window_blocks else 0


def make_sequence(spec: DreamZeroSpec, groups: Iterable[Group] = GROUPS) -> tokens.Sequence:
    """All tokens of a window, group after group."""
    blocks = range(spec.layout.num_blocks + 1)
    return tokens.make_sequence(spec.layout, spec.tokens_per_frame, [(group, blocks) for group in groups])


def rotary_angles(spec: DreamZeroSpec, sequence: tokens.Sequence) -> np.ndarray:
    """float64 [L, d/2]. Clean and noisy copies stand at the same positions; actions and states count apart."""
    angles = []
    for s in sequence:
        if s.group in VIDEO_GROUPS:
            angles.append(rotary.video_angles(np.array([s.frame]), *spec.grid, spec.head_dim))
        else:
            angles.append(rotary.index_angles((s.block - 1) * s.length + np.arange(s.length), spec.head_dim))
    return np.concatenate(angles)
