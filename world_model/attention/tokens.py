"""A token knows what it is: groups of tokens, cut into segments of one latent frame or one block.

A `Group` is a role (clean or noisy) of a modality (video, action, state, ...); a family names those it has. A `Segment`
is a run of consecutive tokens of one group that share block and frame, the smallest thing a visibility rule can tell
apart. A sequence is a tuple of segments in the order in which their tokens stand.
"""

import dataclasses

import numpy as np

from world_model.batch import Layout


@dataclasses.dataclass(frozen=True)
class Group:
    """Role and modality: a row and a column of a visibility table. A family may have groups beside those below."""

    role: str  # clean | noisy; empty where nothing of the modality is ever noisy
    modality: str
    colour: tuple[int, int, int] = (120, 120, 120)  # RGB, in pictures of masks

    def __str__(self) -> str:
        return f"{self.role} {self.modality}".strip()

    @property
    def clean(self) -> bool:
        """Whether its tokens are a clean copy, which stands first where a kernel packs tokens by block."""
        return self.role == "clean"


CLEAN_VIDEO = Group("clean", "video", (86, 134, 197))
NOISY_VIDEO = Group("noisy", "video", (222, 131, 68))
NOISY_ACTION = Group("noisy", "action", (92, 160, 91))
CLEAN_ACTION = Group("clean", "action", (86, 160, 160))
STATE = Group("", "state", (160, 96, 170))


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens [start, start + length) of a sequence."""

    group: Group
    block: int  # autoregressive block; the first frame is block 0
    frame: int  # latent frame; of the block's first frame where the group is not video
    last_frame: int  # last latent frame of the block, for windows counted in frames
    start: int
    length: int
    # Where training samples the block size: the block under each size that it may take. Empty: `block` alone.
    blocks: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + self.length


Sequence = tuple[Segment, ...]


def make_sequence(layout: Layout, tokens_per_frame: int, parts: list[tuple[Group, range]]) -> Sequence:
    """The segments of `parts`: (group, blocks of it that are present), in order. Raises ValueError on a modality that
    is neither video nor action nor state."""
    segments, start = [], 0
    for group, blocks in parts:
        for block in blocks:
            for frame, length in _block_pieces(layout, tokens_per_frame, group, block):
                segments.append(Segment(group, block, frame, block * layout.frames_per_block, start, length))
                start += length
    return tuple(segments)


def _block_pieces(layout: Layout, tokens_per_frame: int, group: Group, block: int):
    """(frame, token count) of each segment of a block."""
    first = 0 if block == 0 else 1 + (block - 1) * layout.frames_per_block
    if group.modality == "video":
        count = 1 if block == 0 else layout.frames_per_block
        return [(first + i, tokens_per_frame) for i in range(count)]
    per_block = {"action": layout.actions_per_block, "state": layout.states_per_block}
    if group.modality not in per_block:
        raise ValueError(f"how many tokens of {group} a block has is not known here: a family with such tokens makes "
                         "their segments itself")
    length = per_block[group.modality]
    return [(first, length)] if block and length else []


def length(sequence: Sequence) -> int:
    """Number of tokens."""
    return sequence[-1].stop if sequence else 0


def segment_of_token(sequence: Sequence) -> np.ndarray:
    """int64 [L]: the index of the segment that each token belongs to."""
    return np.repeat(np.arange(len(sequence)), [s.length for s in sequence])


def token_ranges(sequence: Sequence, keep) -> tuple[tuple[int, int], ...]:
    """Merged (start, stop) of the segments for which keep(segment) is true."""
    return merge_ranges([(s.start, s.stop) for s in sequence if keep(s)])


def merge_ranges(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Joins ranges that touch, keeping their order."""
    merged: list[tuple[int, int]] = []
    for start, stop in ranges:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def select(sequence: Sequence, keep) -> Sequence:
    """The segments for which keep(segment) is true, renumbered to stand next to each other."""
    kept, start = [], 0
    for segment in sequence:
        if keep(segment):
            kept.append(dataclasses.replace(segment, start=start))
            start += segment.length
    return tuple(kept)
