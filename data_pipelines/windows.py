"""Which steps of an episode make a training window.

A window is (episode, start). Everything here is index arithmetic on lengths: nothing is read or decoded.
Action t is applied after frame t is seen and leads to frame t + 1; so the last recorded step has a frame, but
no action that anything could be learnt from.
"""

import dataclasses
import hashlib

import numpy as np

from world_model.batch import Layout


def split_episodes(dataset: str, episodes: np.ndarray, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits `episodes` (int64 indices) into (training, held-out) ones, by a stable hash of (dataset, index).

    Growing or filtering a dataset moves no old episode to the other side, as long as `holdout` leaves at least one
    episode to each. holdout = 0 holds nothing out; above 0 at least one episode is held out, and one is always left.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"data.holdout = {holdout}: expected a fraction in [0, 1)")
    if holdout == 0:
        return episodes, episodes[:0]
    if len(episodes) < 2:
        raise ValueError(f"dataset {dataset!r} has {len(episodes)} episodes: nothing can be held out; "
                         f"set data.holdout = 0")
    chance = np.array([_uniform(dataset, i) for i in episodes.tolist()])
    held = chance < holdout
    held[chance.argmin()] = True
    held[chance.argmax()] = False
    return episodes[~held], episodes[held]


def take_share(dataset: str, episodes: np.ndarray, share: float) -> np.ndarray:
    """The part of `episodes` that a smaller copy of the dataset would have: at least one of them. A smaller share is
    part of a larger one."""
    if not 0 < share <= 1:
        raise ValueError(f"dataset {dataset!r}: share = {share}: expected a fraction above 0, at most 1")
    chance = np.array([_uniform(f"{dataset}/share", i) for i in episodes.tolist()])
    return episodes[(chance < share) | (chance == chance.min())]


def _uniform(dataset: str, index: int) -> float:
    """A number in [0, 1) that depends on the names alone."""
    digest = hashlib.sha256(f"{dataset}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclasses.dataclass(frozen=True)
class WindowIndex:
    """The windows of a dataset, numbered: window i -> (episode, start).

    A row is a stretch of steps where windows may start: the first, every stride-th after it and, so that no step is
    left out, the last that fits. An episode shorter than a window gives one window, at 0.
    """

    episode: np.ndarray  # int64 [R], index in the source, ascending
    first: np.ndarray  # int64 [R], first start
    last: np.ndarray  # int64 [R], last start
    stop: np.ndarray  # int64 [R], step after the last that a window of the row holds
    stride: int  # steps between starts
    ends: np.ndarray  # int64 [R], cumulative number of windows

    @classmethod
    def build(cls, stretches: np.ndarray, lengths: np.ndarray, spans: np.ndarray, stride: int) -> "WindowIndex":
        """Numbers the windows that fit into stretches, int64 [R, 3] as `Source.stretches` returns them.

        lengths: steps of each row's episode; spans: steps from a window's first frame to its last; both int64 [R].
        """
        if stride < 1:
            raise ValueError(f"window_stride = {stride}: expected at least 1 step")
        episode, first, end = stretches.T
        last = np.minimum(end - 1, np.maximum(0, lengths - 1 - spans))
        fits = first <= last  # else a window that began here would reach past the episode's end
        stop = np.minimum(last + spans + 1, lengths)
        episode, first, last, stop = (column[fits] for column in (episode, first, last, stop))
        return cls(episode, first, last, stop, stride, np.cumsum(-(-(last - first) // stride) + 1))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, window: int) -> tuple[int, int]:
        if not 0 <= window < len(self):
            raise IndexError(f"window {window} of {len(self)}")
        row = int(np.searchsorted(self.ends, window, side="right"))
        before = int(self.ends[row - 1]) if row else 0
        start = self.first[row] + (window - before) * self.stride
        return int(self.episode[row]), int(min(start, self.last[row]))

    @property
    def episodes(self) -> np.ndarray:
        """The episodes that have a window, int64, ascending."""
        return np.unique(self.episode)

    def rows(self, episode: int) -> range:
        """The rows that belong to one episode."""
        return range(*np.searchsorted(self.episode, (episode, episode + 1)).tolist())

    def starts(self, row: int) -> np.ndarray:
        """The first step of every window of a row, int64 [windows of the row]."""
        first, last = self.first[row], self.last[row]
        return np.minimum(first + np.arange(-(-(last - first) // self.stride) + 1) * self.stride, last)


def window_span(layout: Layout, rate_ratio: np.ndarray | float) -> np.ndarray:
    """The recorded steps from the first frame of a window to its last; rate_ratio = recorded rate / control rate."""
    return _nearest((layout.frames - 1) * layout.frame_stride * np.asarray(rate_ratio))


def frame_steps(layout: Layout, start: int, rate_ratio: float) -> np.ndarray:
    """The recorded step of every raw frame, int64 [T], possibly past the episode's end."""
    return start + _nearest(np.arange(layout.frames) * layout.frame_stride * rate_ratio)


def block_starts(layout: Layout, start: int) -> np.ndarray:
    """The step of each block's first action, int64 [chunks]; relative actions are relative to the state there."""
    return start + np.arange(layout.chunks) * layout.actions_per_block


def state_steps(layout: Layout, start: int) -> np.ndarray:
    """The step of each state, int64 [S]: they are evenly spread over their block, the first at its start."""
    spacing = layout.actions_per_block // max(layout.states_per_block, 1)
    return start + np.arange(layout.num_states) * spacing


def _nearest(steps: np.ndarray) -> np.ndarray:
    return np.floor(steps + 0.5).astype(np.int64)
