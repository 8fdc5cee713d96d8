"""Solver steps that reuse the last prediction in place of a new one (facts/dreamzero.md, d: DiT-step skipping).

A skipped step still moves the sample. Which steps run is either a table or decided on the way: a prediction that
hardly turns any more is taken for those to come.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

# Of 16 steps, those that run, by their number; as released.
STATIC = {5: (0, 1, 2, 7, 12), 6: (0, 1, 5, 10, 14, 15), 7: (0, 1, 2, 6, 10, 14, 15), 8: (0, 1, 2, 6, 10, 13, 14, 15)}
STATIC_STEPS = 16
THRESHOLDS = ((0.95, 3), (0.93, 1))  # (cosine, steps) of `Adaptive`, as released


class Skipping(Protocol):
    """Decides inside `lax.scan`."""

    def planned(self, steps: int) -> tuple[bool, ...] | None:
        """Whether each step runs; None where that is decided on the way."""

    def init(self, video: jax.Array):
        """What is remembered before the first step; video: like a prediction [B, n, h, w, C]."""

    def decide(self, i, memory) -> tuple:
        """(whether step i runs, bool or traced; memory)."""

    def note(self, memory, video: jax.Array):
        """A new prediction has been made."""


@dataclasses.dataclass(frozen=True)
class Never:
    """Every step runs."""

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
    """The steps of a table run."""

    runs: tuple[bool, ...]  # of every step; the first must

    def planned(self, steps):
        return self.runs

    def init(self, video):
        return ()

    def decide(self, i, memory):
        return jnp.asarray(self.runs)[i], memory

    def note(self, memory, video):
        return memory


class Memory(NamedTuple):
    """Of `Adaptive`."""

    last: jax.Array  # video prediction, the newest
    before: jax.Array  # the one before it
    made: jax.Array  # int32, predictions so far
    left: jax.Array  # int32, steps still to be skipped
    forced: jax.Array  # bool: the next step that is not skipped runs, whatever the cosine says


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Skips while the last two video predictions point the same way.

    thresholds: (cosine, steps), highest first: above the cosine this step and `steps` more are skipped, then one runs.
    In a batch the least similar sample decides, because all step together.
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
        free = (memory.made >= 2) & (memory.left == 0) & ~memory.forced
        left = jnp.where(free, more, memory.left)
        run = left == 0
        return run, memory._replace(left=jnp.maximum(left - 1, 0), forced=~run)

    def note(self, memory: Memory, video) -> Memory:
        return memory._replace(last=video, before=memory.last, made=memory.made + 1)


def make_skipping(name: str, steps: int, thresholds: tuple = THRESHOLDS) -> Skipping:
    """"none", "adaptive" (with those thresholds) or a number of STATIC. Raises ValueError on another name, a table of
    other steps, or thresholds that do not fall."""
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
    """[B]; 0 where one is zero."""
    a, b = (x.reshape(len(x), -1).astype(jnp.float32) for x in (a, b))
    length = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / jnp.maximum(length, 1e-30)
