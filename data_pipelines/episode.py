"""What every source yields: an episode whose frames are decoded only when somebody asks for them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

ALWAYS_ALLOWED = 3  # unreadable things that are skipped however few there are in all


class BadEpisode(ValueError):
    """One recording is unreadable or inconsistent; it is named, counted and skipped up to a limit (`check_limit`).
    Where nobody skips it, it ends a command as any ValueError does: in a sentence."""


def check_limit(bad: int, of: int, max_fraction: float, what: str, lines: Iterable[str]) -> None:
    """Raises ValueError with the list where `bad` of `of` things are unreadable and that is too many.

    `max_fraction` of them may be, and ALWAYS_ALLOWED in any case; where it is 0, none may.
    """
    allowed = max(ALWAYS_ALLOWED, max_fraction * of) if max_fraction else 0
    if bad > allowed:
        raise ValueError(f"{bad} of {of} {what} are unreadable, more than data.max_bad_fraction = {max_fraction}:\n"
                         + "\n".join(f"  {line}" for line in lines))


@dataclasses.dataclass(frozen=True)
class Episode:
    """One recording. Arrays are in the robot's units; frames are decoded by `read_frames` alone."""

    dataset: str  # name in the mixture
    index: int  # position in its source
    length: int  # steps (frames of a video clip)
    rate: float  # steps per second
    instruction: str  # at the first step
    state: np.ndarray | None  # float32 [length, state dims]; None where there is none
    action: np.ndarray | None  # float32 [length, action dims]; None for an action-free clip
    read_frames: Callable[[np.ndarray], dict[str, np.ndarray]]  # step indices [n] -> view -> uint8 [n, H, W, 3]
    drift: float | None = None  # seconds by which a recorded time is off `rate` at most; None: no times are recorded
    instructions: tuple[tuple[int, str | BadEpisode], ...] = ()  # (step, text from there on), where it may change
    disagreements: Callable[[], list[str]] = list  # sentences on pictures whose times and counts differ; opens video

    def instruction_at(self, step: int) -> str:
        """The text that holds at a step. Raises BadEpisode where it cannot be read."""
        found = next((text for first, text in reversed(self.instructions) if first <= step), self.instruction)
        if isinstance(found, BadEpisode):
            raise found
        return found


class Source(Protocol):
    """A finite, indexable, picklable collection of episodes. Opening it reads metadata, never pixels. Filters do not
    renumber: an index stands for one recording, whatever is chosen."""

    def lengths(self) -> np.ndarray:
        """The steps of each episode, int64 [episodes]."""

    def rates(self) -> np.ndarray:
        """The steps per second of each episode, float64 [episodes]."""

    def stretches(self) -> np.ndarray:
        """The steps where windows may begin, as sorted rows (episode, first, end), int64 [stretches, 3]. A recording
        that a filter leaves out has no row, one without filter has (episode, 0, length)."""

    @property
    def files(self) -> list[str]:
        """The paths or addresses of all that holds steps and pictures, as the metadata name them: there or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode:
        """Raises BadEpisode (with the file and the reason) where the recording cannot be used."""
