"""A policy of chunks for samplers that can imagine what running actions lead to, used by asynchronous.py.

An observation is a latent frame: several raw frames, n control steps. When a chunk is asked for, the last frame that
has wholly been seen ends at a boundary at or before now; from there on the robot executes what is known to be on its
way.
A grounded policy (arXiv 2601.21998, Algorithm 2) imagines the frame that these actions lead to from them and the last
observation, and predicts the next actions from it. A policy that is not grounded keeps the frame in the cache that was
imagined when these actions were predicted, from older observations. All episodes move in step and share one cache, a
row each.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.robots.robot import Robot
from data_pipelines.robots.slots import slot_mask
from launch.setup.restore import Restored
from launch.simulation.closed_loop import Run


class ImaginingSampler(Protocol):
    """A sampler that predicts chunk by chunk and can imagine the frame that given actions lead to.

    What it calls an episode holds one row per simulated episode; `episode.next(frames)` goes on to the next chunk,
    `episode.ring` is its cache.
    """

    model: Any  # its spec has actions_per_frame and action_dim

    def noise(self, keys, chunk: int, frames: int):
        """Samples (noise, action noise) of a chunk; keys: one per sample [B]."""

    def start(self, params: dict, text, unconditional_text=None):
        """Begins an episode."""

    def predict(self, params: dict, episode, noise, action_noise, action_mask=None):
        """Predicts (latents [B, F, h, w, C], normalised actions [B, F n, A], episode after them)."""

    def observe(self, params: dict, episode, latents, actions):
        """Returns the episode with what was seen and executed in place of what was predicted."""

    def ground(self, params: dict, episode, noise, actions):
        """Imagines the frames that actions lead to: (latents, episode with them in its cache)."""


@dataclasses.dataclass(eq=False)
class ChunkPolicy:
    """A `closed_loop.Policy` whose chunks are one latent frame long.

    Answers begin at the step of the question: the rest of the running chunk, as known, and the next one.
    """

    restored: Restored  # its family's sampler is an ImaginingSampler
    robot: Robot
    instruction: str  # the task's instruction
    grounded: bool = True
    seed: int = 0

    def __post_init__(self):
        experiment = self.restored.experiment
        self.sampler: ImaginingSampler = experiment.sampler(chunk_frames=1)
        self.params = jax.tree.map(jnp.asarray, self.restored.params)
        self._start, self._see = jax.jit(experiment.inputs.start), jax.jit(experiment.inputs.encode_block)
        self.runs: list[Run] = []
        self.gaps: list[float] = []  # root mean squares between a frame as imagined while its actions ran, and as seen

    @property
    def horizon(self) -> int:
        """Number n of control steps of a latent frame."""
        return self.sampler.model.spec.actions_per_frame

    def __call__(self, runs: list[Run]) -> list[np.ndarray]:
        """Answers every episode. Raises ValueError where they are not in step, because they share one cache."""
        if not self.runs:
            self._begin(runs)
        now, n = len(runs[0].actions), self.horizon
        if any(len(run.actions) != now for run in runs):
            raise ValueError("episodes that share a cache are asked about at the same control step")
        boundary = now - now % n
        for start in range(self.seen, boundary, n):
            self._observe(start)
        running = self._running_chunk(boundary, now, runs)
        if running is not None:
            self._look_ahead(running)
        predicted = self._predict(boundary + n * (running is not None))
        commands = predicted if running is None else np.concatenate([running, predicted], axis=1)
        self.planned[boundary + n * (running is not None)] = predicted
        return [commands[self.runs.index(run), now - boundary:] for run in runs]

    def _begin(self, runs: list[Run]) -> None:
        """Begins an episode with what is seen before any action."""
        self.runs, self.seen, self.planned, self.imagined = list(runs), 0, {}, {}
        batch = len(runs)
        ids, length = self.restored.experiment.inputs.tokenize(self.robot.prompt(self.instruction))
        start = self._start(self.restored.frozen, self._frames(0)[:, -1:], np.tile(ids, (batch, 1)),
                            np.full(batch, length, np.int32))
        episode = self.sampler.start(self.params, start.text, start.unconditional_text)
        zeros = jnp.zeros((batch, self.horizon, self.sampler.model.spec.action_dim))
        self.episode = self.sampler.observe(self.params, episode, start.first_latents, zeros).next(1)

    def _observe(self, start: int) -> None:
        """Observes the frame that ends n steps after `start`, and what was executed until then."""
        stop = start + self.horizon
        latents = self._see(self.restored.frozen, self._frames(stop))
        executed = np.stack([self._executed(run, start, stop) for run in self.runs])
        if start in self.imagined:
            self.gaps.append(float(jnp.sqrt(jnp.square(self.imagined.pop(start) - latents).mean())))
        self.episode = self.sampler.observe(self.params, self.episode, latents, self._normalised(executed)).next(1)
        self.seen = stop

    def _running_chunk(self, boundary: int, now: int, runs: list[Run]) -> np.ndarray | None:
        """Collects the chunk from the boundary on, [B, n, action dims]: actions executed, then those on their way.

        None where the robot has no plan for it.
        """
        informed = any(run.in_flight is not None for run in runs)
        if not informed and boundary not in self.planned:
            return None
        stop, later = boundary + self.horizon, now - boundary
        chunk = np.stack([self._executed(run, boundary, stop) for run in self.runs])
        if not informed:  # the robot says nothing, so it executes what was predicted
            chunk[:, later:] = self.planned[boundary][:, later:]
        for run in runs if informed else ():
            known = np.array(run.in_flight[:stop - now])
            rest = np.repeat(known[-1:], stop - now - len(known), axis=0)  # after them the robot holds
            chunk[self.runs.index(run), later:] = np.concatenate([known, rest])
        return chunk

    def _look_ahead(self, running: np.ndarray) -> None:
        """Makes the episode `ahead`, after the running chunk, whose frame is not seen yet; `episode` stays as it is."""
        self.ahead = self.episode
        if self.grounded:
            noise, _ = self._noise(self.episode.chunk)
            self.imagined[self.seen], self.ahead = self.sampler.ground(self.params, self.episode, noise,
                                                                       self._normalised(running))
        self.ahead = self.ahead.next(1)

    def _predict(self, start: int) -> np.ndarray:
        """Predicts commands [B, n, action dims] from control step `start` on, in robot units."""
        episode = self.ahead if start > self.seen else self.episode
        mask = jnp.tile(slot_mask(self.robot.embodiment.action_slots, self.sampler.model.spec.action_dim),
                        (len(self.runs), 1))
        noise, action_noise = self._noise(episode.chunk)
        latents, actions, after = self.sampler.predict(self.params, episode, noise, action_noise, mask)
        if not self.grounded:  # the imagined frame stays in the cache until the real one is seen
            self.episode = self.episode._replace(ring=after.ring)
            self.imagined[start] = latents
        return np.stack([self.robot.commands(a, run.states[-1]) for a, run in zip(np.asarray(actions), self.runs)])

    def _noise(self, chunk: int):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(self.seed), i))(jnp.arange(len(self.runs)))
        return self.sampler.noise(keys, chunk, 1)

    def _executed(self, run: Run, start: int, stop: int) -> np.ndarray:
        """Lists the commands of those steps; the last one repeats where the episode is over or they are to come."""
        done = run.actions[start:stop] or [run.actions[-1] if run.actions else run.states[-1]]
        return np.array([*done, *[done[-1]] * (stop - start - len(done))], np.float64)

    def _normalised(self, commands: np.ndarray) -> jax.Array:
        width = self.sampler.model.spec.action_dim
        return jnp.stack([self.robot.predicted(c, run.states[-1], width) for c, run in zip(commands, self.runs)])

    def _frames(self, step: int) -> np.ndarray:
        """Canvases of every episode's latent frame that ends at `step`: uint8 [B, frames, H, W, 3]."""
        return np.stack([self._canvases(run, step) for run in self.runs])

    def _canvases(self, run: Run, step: int) -> np.ndarray:
        """Tiles the views of the raw frames of the latent frame that ends at `step`: uint8 [frames, H, W, 3]."""
        count = self.restored.experiment.layout.temporal_stride
        steps = [max(0, step - back * (self.horizon // count)) for back in reversed(range(count))]
        seen = [run.frames[min(i, len(run.frames) - 1)] for i in steps]
        return self.robot.canvas({name: np.stack([frame[name] for frame in seen]) for name in seen[0]})
