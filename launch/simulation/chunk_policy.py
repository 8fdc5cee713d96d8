"""LingBot-VA that acts chunk by chunk, for launch/simulation/asynchronous.py: grounded in what is on its way, or not.

An observation is a latent frame: four raw frames, n control steps. When a chunk is asked for, the last frame that has
wholly been seen ends at a boundary at or before now; from there on the robot executes what is known to be on its way.
Grounded (arXiv 2601.21998, Algorithm 2): the frame that these actions lead to is imagined from them and the last
observation, and the next actions are predicted from it. Not grounded: the frame imagined when they were predicted, from
older observations, stays in the cache. All episodes move in step and share one cache, a row each.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.robots.robot import Robot
from data_pipelines.robots.slots import slot_mask
from launch.setup import build
from launch.simulation.closed_loop import Run
from world_model.families.base.loss import Objective
from world_model.families.lingbot_va.sampler import LingBotVARollout


@dataclasses.dataclass(eq=False)
class ChunkPolicy:
    """A `launch.closed_loop.Policy` of one latent frame a chunk.

    Answers begin at the step of the question: the rest of the running chunk, as known, and the next one.
    """

    restored: build.Restored
    robot: Robot
    instruction: str  # the task's
    grounded: bool = True
    seed: int = 0

    def __post_init__(self):
        settings = build.rollout_settings(self.restored.config) | {"chunk_frames": 1}
        self.rollout: LingBotVARollout = self.restored.family.rollout(**settings)
        self.params = jax.tree.map(jnp.asarray, self.restored.params)
        self.runs: list[Run] = []
        self.gaps: list[float] = []  # root mean square between frames as imagined while their actions ran, and as seen

    @property
    def horizon(self) -> int:
        """n, control steps of a latent frame."""
        return self.rollout.model.spec.actions_per_frame

    def __call__(self, runs: list[Run]) -> list[np.ndarray]:
        """Raises ValueError where episodes are not in step: they share one cache."""
        if not self.runs:
            self._begin(runs)
        now, n = len(runs[0].actions), self.horizon
        if any(len(run.actions) != now for run in runs):
            raise ValueError("episodes that share a cache are asked about at the same control step")
        boundary = now - now % n
        for start in range(self.seen, boundary, n):
            self._observe(start)
        running = self._running(boundary, now, runs)
        if running is not None:
            self._pass_over(running)
        predicted = self._predict(boundary + n * (running is not None))
        commands = predicted if running is None else np.concatenate([running, predicted], axis=1)
        self.planned[boundary + n * (running is not None)] = predicted
        return [commands[self.runs.index(run), now - boundary:] for run in runs]

    def _begin(self, runs: list[Run]) -> None:
        self.runs, self.seen, self.planned, self.imagined = list(runs), 0, {}, {}
        objective, batch = self.restored.objective, len(runs)
        ids, length = objective.text_encoder.tokenize(self.robot.prompt(self.instruction))
        text = objective.text_encoder.encode(objective.frozen["text"], jnp.tile(ids, (batch, 1)),
                                             jnp.full(batch, length))
        session = self.rollout.start(self.params, text, objective.empty_text(batch))
        zeros = jnp.zeros((batch, self.horizon, self.rollout.model.spec.action_dim))
        self.session = self.rollout.observe(self.params, session, self._latents(0), zeros).next(1)

    def _observe(self, start: int) -> None:
        """The frame that ends n steps after `start`, and what was executed until then."""
        stop = start + self.horizon
        latents, executed = self._latents(stop), np.stack([self._executed(run, start, stop) for run in self.runs])
        if start in self.imagined:
            self.gaps.append(float(jnp.sqrt(jnp.square(self.imagined.pop(start) - latents).mean())))
        self.session = self.rollout.observe(self.params, self.session, latents, self._normalised(executed)).next(1)
        self.seen = stop

    def _running(self, boundary: int, now: int, runs: list[Run]) -> np.ndarray | None:
        """[B, n, action dims] of the chunk from the boundary on: executed, then on its way; None where the robot has no
        plan for it."""
        told = any(run.in_flight is not None for run in runs)
        if not told and boundary not in self.planned:
            return None
        stop, later = boundary + self.horizon, now - boundary
        chunk = np.stack([self._executed(run, boundary, stop) for run in self.runs])
        if not told:  # what was predicted is at least what was meant
            chunk[:, later:] = self.planned[boundary][:, later:]
        for run in runs if told else ():
            known = np.array(run.in_flight[:stop - now])
            rest = np.repeat(known[-1:], stop - now - len(known), axis=0)  # then it holds
            chunk[self.runs.index(run), later:] = np.concatenate([known, rest])
        return chunk

    def _pass_over(self, running: np.ndarray) -> None:
        """On to the chunk after the running one, whose frame is not seen yet. `self.session` stays before it."""
        self.ahead = self.session
        if self.grounded:
            noise, _ = self._noise(self.session.chunk)
            self.imagined[self.seen], self.ahead = self.rollout.ground(self.params, self.session, noise,
                                                                       self._normalised(running))
        self.ahead = self.ahead.next(1)

    def _predict(self, start: int) -> np.ndarray:
        """[B, n, action dims] from control step `start` on, in robot units."""
        session = self.ahead if start > self.seen else self.session
        mask = jnp.tile(slot_mask(self.robot.embodiment.action_slots, self.rollout.model.spec.action_dim),
                        (len(self.runs), 1))
        latents, actions, after = self.rollout.predict(self.params, session, *self._noise(session.chunk), mask)
        if not self.grounded:  # what was imagined stays until it is seen
            self.session = self.session._replace(ring=after.ring)
            self.imagined[start] = latents
        return np.stack([self.robot.commands(a, run.states[-1]) for a, run in zip(np.asarray(actions), self.runs)])

    def _noise(self, chunk: int):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(self.seed), i))(jnp.arange(len(self.runs)))
        return self.rollout.noise(keys, chunk, 1)

    def _executed(self, run: Run, start: int, stop: int) -> np.ndarray:
        """Commands of those steps; the last one again where the episode is over or they are still to come."""
        done = run.actions[start:stop] or [run.actions[-1] if run.actions else run.states[-1]]
        return np.array([*done, *[done[-1]] * (stop - start - len(done))], np.float64)

    def _normalised(self, commands: np.ndarray) -> jax.Array:
        width = self.rollout.model.spec.action_dim
        return jnp.stack([self.robot.predicted(c, run.states[-1], width) for c, run in zip(commands, self.runs)])

    def _latents(self, step: int) -> jax.Array:
        """[B, 1, h, w, C] of the frame that ends at that control step, as training encodes it."""
        stride = self.horizon // 4
        at = [max(0, step - back * stride) for back in (3, 2, 1, 0)]
        frames = [[run.frames[min(i, len(run.frames) - 1)] for i in at] for run in self.runs]
        views = lambda seen: {name: np.stack([frame[name] for frame in seen]) for name in seen[0]}
        video = jnp.asarray(np.stack([self.robot.canvas(views(seen)) for seen in frames]), jnp.float32) / 127.5 - 1
        if step == 0:
            return _encode(self.restored.objective, video[:, -1:])
        # The frames before are gone: this one's first stands in for them (as in world_model/families/base/policy.py).
        return _encode(self.restored.objective, jnp.concatenate([video[:, :1], video], axis=1))[:, 1:]


@jax.jit
def _encode(objective: Objective, video: jax.Array) -> jax.Array:
    return objective.codec.encode(objective.frozen["video"], video)
