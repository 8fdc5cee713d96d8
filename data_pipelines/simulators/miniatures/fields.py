"""What a miniature's columns hold: smooth numbers, grippers as data sets tell them, a square that moves."""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np

TEXT = "move the square to the other side"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A column of vectors. kind: smooth waves; `switch` from one end to the other; `pulse`, -1 or 1 where a switch
    turns, else 0; `poses`, of each arm xyz, a quaternion xyzw and a gripper from 0 to 1."""

    width: int
    low: float = -1.0
    high: float = 1.0
    dtype: str = "float32"
    kind: str = "smooth"
    still_first: bool = False  # zero at the first step
    like: str = ""  # a column of which this one is a copy

    def values(self, name: str, steps: int, episode: int) -> np.ndarray:
        """[steps, width], a function of its arguments."""
        rng = np.random.default_rng([zlib.crc32(name.encode()), episode])
        phase = np.arange(steps)[:, None] / rng.uniform(20, 40, self.width) + rng.uniform(0, 1, self.width)
        wave = np.sin(2 * np.pi * phase)
        if self.kind == "poses":
            found = wave.reshape(steps, -1, 8)
            found[..., 3:7] /= np.linalg.norm(found[..., 3:7], axis=-1, keepdims=True)
            found = np.abs(found).reshape(steps, self.width)
        elif self.kind == "pulse":
            found = np.diff(np.sign(wave), axis=0, prepend=np.sign(wave[:1])) / 2
        else:
            share = (wave > 0) if self.kind == "switch" else (wave + 1) / 2
            found = self.low + (self.high - self.low) * share
        if self.still_first:
            found[0] = 0
        return found.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A camera."""

    height: int
    width: int

    def frames(self, name: str, steps: int, episode: int) -> np.ndarray:
        """uint8 [steps, height, width, 3]: a square that crosses a plain ground, of other colours in each camera."""
        rng = np.random.default_rng([zlib.crc32(name.encode()), episode])
        found = np.empty((steps, self.height, self.width, 3), np.uint8)
        found[:] = rng.integers(40, 120, 3)
        side, top = self.height // 4, int(rng.integers(self.height // 2))
        for t in range(steps):
            left = t * (self.width - side) // max(steps - 1, 1)
            found[t, top:top + side, left:left + side] = 220
        return found


@dataclasses.dataclass(frozen=True)
class Text:
    """An instruction, or a name in which {} is the episode's number."""

    text: str = TEXT


Field = Numbers | Picture | Text


def columns(fields: Mapping[str, Field], steps: int, episode: int) -> dict[str, np.ndarray]:
    """The vectors of an episode by column, those that are copies too."""
    numbers = {name: field for name, field in fields.items() if isinstance(field, Numbers)}
    return {name: numbers[field.like or name].values(field.like or name, steps, episode)
            for name, field in numbers.items()}
