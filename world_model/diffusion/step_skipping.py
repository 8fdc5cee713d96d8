"""Solver steps that reuse the last prediction instead of making a new one (the DiT cache of arXiv 2602.15922, Table 1).

A skipped step still moves the sample. Which steps run is either written in a table or decided on the way: once a
prediction hardly turns any more, it stands for those to come. Tables and thresholds are those of the paper's released
code at commit ab790c1 (`lazy_joint_video_action`; NUM_DIT_STEPS and DYNAMIC_CACHE_SCHEDULE choose among them).
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

# How many of 16 steps run -> which of them.
STATIC = {5: (0, 1, 2, 7, 12), 6: (0, 1, 5, 10, 14, 15), 7: (0, 1, 2, 6, 10, 14, 15), 8: (0, 1, 2, 6, 10, 13, 14, 15)}
STATIC_STEPS = 16
THRESHOLDS = ((0.95, 3), (0.93, 1))  # (cosine, steps) of `Adaptive`


class Skipping(Protocol):
    """A rule that decides inside `lax.scan` which steps run."""

    def planned(self, steps: int) -> tuple[bool, ...] | None:
        """Tells of each step whether it runs; None where that is decided on the way."""

    def init(self, video: jax.Array):
        """Makes the memory before the first step; video: an array like a prediction [B, n, h, w, C]."""

    def decide(self, i, memory) -> tuple:
        """Returns (whether step i runs, bool or traced; memory)."""

    def note(self, memory, video: jax.Array):
        """Notes a new prediction; returns the memory with it."""


@dataclasses.dataclass(frozen=True)
class Never:
    """Skips nothing."""

    def planned(self, steps):
        return (True,) * steps

    def init(self, video):
        return ()

    def decide(self, i, memory):
        return True, memory

    def note(self, memory, video):
        return memory


@dataclasses.dataclass(frozen=True)
class Static:
    """Runs the steps of a table."""

    runs: tuple[bool, ...]  # whether each step runs; the first must

    def planned(self, steps):
        return self.runs

    def init(self, video):
        return ()

    def decide(self, i, memory):
        return jnp.asarray(self.runs)[i], memory

    def note(self, memory, video):
        return memory


class Memory(NamedTuple):
    """What `Adaptive` remembers between steps."""

    last: jax.Array  # the newest video prediction
    before: jax.Array  # the video prediction before it
    count: jax.Array  # int32, predictions so far
    left: jax.Array  # int32, steps still to be skipped
    forced: jax.Array  # bool, whether the next step that is not skipped runs whatever the cosine says


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Skips while the last two video predictions point the same way.

    thresholds: pairs (cosine, steps), highest first. Above the cosine this step and `steps` more are skipped, then one
    runs. In a batch the least similar sample decides, because all samples step together.
    """

    thresholds: tuple[tuple[float, int], ...] = THRESHOLDS

    def planned(self, steps):
        return None

    def init(self, video) -> Memory:
        none = jnp.int32(0)
        return Memory(jnp.zeros_like(video), jnp.zeros_like(video), none, none, jnp.bool_(False))

    def decide(self, i, memory: Memory):
        similar = _cosine(memory.last, memory.before).min()
        more = jnp.int32(0)
        for cosine, steps in reversed(self.thresholds):  # a step is skipped itself: steps + 1
            more = jnp.where(similar > cosine, steps + 1, more)
        free = (memory.count >= 2) & (memory.left == 0) & ~memory.forced
        left = jnp.where(free, more, memory.left)
        run = left == 0
        return run, memory._replace(left=jnp.maximum(left - 1, 0), forced=~run)

    def note(self, memory: Memory, video) -> Memory:
        return memory._replace(last=video, before=memory.last, count=memory.count + 1)


def make_skipping(name: str, steps: int, thresholds: tuple = THRESHOLDS) -> Skipping:
    """Makes the rule of a name: "none", "adaptive" (with `thresholds`) or a number of STATIC.

    Raises ValueError on another name, on another number of steps than a table's, or on thresholds that do not fall.
    """
    if name == "none":
        return Never()
    if name == "adaptive":
        cosines = [cosine for cosine, _ in thresholds]
        if not cosines or sorted(set(cosines), reverse=True) != cosines or any(steps < 0 for _, steps in thresholds):
            raise ValueError(f"skip_thresholds = {thresholds}: expected (cosine, steps) pairs, highest cosine first")
        return Adaptive(thresholds)
    if name.isdigit() and int(name) in STATIC:
        if steps != STATIC_STEPS:
            raise ValueError(f"skipping = {name!r} is a table of {STATIC_STEPS} solver steps, found {steps}")
        return Static(tuple(i in STATIC[int(name)] for i in range(STATIC_STEPS)))
    raise ValueError(f"skipping = {name!r}: expected none, adaptive or one of {', '.join(map(str, STATIC))}")


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine between two predictions of each sample, float32 [B]; 0 where one is zero."""
    a, b = (x.reshape(len(x), -1).astype(jnp.float32) for x in (a, b))
    length = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / jnp.maximum(length, 1e-30)
