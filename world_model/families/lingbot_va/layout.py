"""LingBot-VA's sizes, what stands where in a sequence, and at which positions (arXiv 2601.21998, section 3;
docs/references/lingbot_va.md)."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from world_model.attention import tokens
from world_model.attention.tokens import CLEAN_ACTION, CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, Group, Segment
from world_model.attention.visibility import Table
from world_model.families.lingbot_va.visibility import TABLES
from world_model.families.wan.spec import VideoSpec
from world_model.layers import rotary


class Modality(enum.StrEnum):
    """What a pass over a chunk is about: its video, or the actions that lead to it."""

    VIDEO = "video"
    ACTION = "action"


VIDEO_GROUPS = (CLEAN_VIDEO, NOISY_VIDEO)
HEADS_READ = (NOISY_VIDEO, NOISY_ACTION)
GROUPS = (CLEAN_VIDEO, CLEAN_ACTION, *HEADS_READ)  # the order of a sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class LingBotVASpec(VideoSpec):
    """Sizes; defaults and units in config.py."""

    tables: ClassVar[Mapping[str, Table]] = TABLES

    state_dim: int = 0
    max_chunk_frames: int = 4
    min_window_blocks: int = 4
    max_window_blocks: int = 64
    visibility: str = "lingbot_va"

    def __post_init__(self):
        super().__post_init__()
        if self.layout.frames_per_block != 1:
            raise ValueError(f"layout.frames_per_block = {self.layout.frames_per_block}: LingBot-VA groups actions by "
                             "latent frame; set it to 1 (chunks are model.max_chunk_frames)")
        if self.max_chunk_frames < 1:
            raise ValueError(f"model.max_chunk_frames = {self.max_chunk_frames}: at least 1 latent frame")
        if not 1 <= self.min_window_blocks <= self.max_window_blocks:
            raise ValueError(f"model.min_window_blocks = {self.min_window_blocks}, model.max_window_blocks = "
                             f"{self.max_window_blocks}: expected 1 <= min <= max")

    @property
    def actions_per_frame(self) -> int:
        """n, action tokens of one latent frame."""
        return self.layout.actions_per_block

    @property
    def training_tokens(self) -> int:
        return self.layout.latent_frames * sum(map(self.group_length, GROUPS))

    def group_length(self, group: Group) -> int:
        """Tokens of one latent frame in that group."""
        return self.tokens_per_frame if group in VIDEO_GROUPS else self.actions_per_frame


def make_sequence(spec: LingBotVASpec, frames: int, order: tuple[Group, ...] = GROUPS) -> tokens.Sequence:
    """All tokens of `frames` latent frames, group after group.

    A chunk's video is block 2 c, its actions are block 2 c + 1; a last chunk may be short.
    """
    segments, start = [], 0
    sizes = range(1, spec.max_chunk_frames + 1)
    for group in order:
        for frame in range(frames):
            blocks = tuple(2 * (frame // size) + (group not in VIDEO_GROUPS) for size in sizes)
            segments.append(Segment(group, blocks[-1], frame, frame, start, spec.group_length(group), blocks))
            start += spec.group_length(group)
    return tuple(segments)


def rotary_table(spec: LingBotVASpec, sequence: tokens.Sequence) -> np.ndarray:
    """float32 [2, L, d/2]. Clean and noisy copies stand at the same positions."""
    return np.concatenate([frame_rotary(spec, Modality(s.group.modality), range(s.frame, s.frame + 1))
                           for s in sequence], axis=1)


def frame_rotary(spec: LingBotVASpec, modality: Modality, frames: range) -> np.ndarray:
    """float32 [2, tokens, d/2] for latent frames counted from the episode's start.

    Angles are rounded to float32, as published: half a step is 7.6e-6 rad at frame 128.
    """
    angles = rotary.position_angles(frame_positions(spec, modality, frames), spec.head_dim)
    return rotary.table(angles.astype(np.float32))


def frame_positions(spec: LingBotVASpec, modality: Modality, frames: range) -> np.ndarray:
    """float32 [3, tokens]: time, row and column.

    Action j of frame f stands at time f + (j + 1) / (n + 1), row and column -1: a table indexed by whole positions
    cannot serve it.
    """
    times, n = np.asarray(frames, np.float64), spec.actions_per_frame
    if modality is Modality.VIDEO:
        parts = np.meshgrid(times, *(np.arange(size) for size in spec.grid), indexing="ij")
    else:
        time = times[:, None] + (np.arange(n) + 1) / (n + 1)
        parts = [time, -np.ones(time.shape), -np.ones(time.shape)]
    return np.stack([part.ravel() for part in parts]).astype(np.float32)
