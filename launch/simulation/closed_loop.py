"""Policies that act in parallel simulated episodes and are asked for a chunk when the last one has been executed.

The model acts through the same sessions and the same engine as a served client, so the frames really seen replace the
imagined ones in its cache.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import scipy.stats

from launch.serving.engine import Engine, ModelError
from launch.serving.messages import Observation
from launch.serving.sessions import Sessions

CONFIDENCE = 0.95


class Episode(Protocol):
    """A simulated task under way, such as simulators.pusht.task.Episode."""

    coverage: list[float]  # after each step; holds the reward where a task has no coverage

    def views(self) -> dict[str, np.ndarray]:
        """What the cameras see now: view -> uint8 [H, W, 3]."""

    def state(self) -> np.ndarray:
        """The robot's numbers, in its units."""

    def still(self, last: np.ndarray | None = None) -> np.ndarray:
        """The command that holds the robot after command `last`."""

    def expert(self) -> np.ndarray:
        """The command that the scripted controller would give now."""

    def step(self, action: np.ndarray) -> None:
        """Executes a command for one control step."""

    @property
    def solved(self) -> bool:
        """Whether the task is done."""

    @property
    def over(self) -> bool:
        """Whether nothing more is executed."""


@dataclasses.dataclass(eq=False)
class Run:
    """An episode under way."""

    seed: int
    episode: Episode
    frames: list[dict] = dataclasses.field(default_factory=list)  # views at every step, the first before any action
    states: list[np.ndarray] = dataclasses.field(default_factory=list)
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    imagined: list[tuple] = dataclasses.field(default_factory=list)  # (first step, latents or None) of each chunk
    in_flight: np.ndarray | None = None  # [k, action dims]: what is executed while the next chunk is awaited
    gaps: list[float] = dataclasses.field(default_factory=list)
    interventions: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    instruction: str | None = None  # None: the policy's

    def look(self, render: bool = True) -> None:
        """Notes what is seen now; render: with pictures, which may take longer than everything else."""
        if render:
            self.frames.append(self.episode.views())
        self.states.append(self.episode.state())


Policy = Callable[[list[Run]], list[np.ndarray]]  # episodes that need a chunk -> [n, action dims] for each


def play(policy: Policy, runs: list[Run], execute: int, every: int = 1) -> None:
    """Drives all episodes together to their ends, `execute` actions of each chunk.

    every: steps of a chunk from one picture to the next, which stands for those between; 0: the policy needs none.
    """
    for run in runs:
        run.look(every > 0)
    while active := [run for run in runs if not run.episode.over]:
        for run, chunk in zip(active, policy(active), strict=True):
            for count, action in enumerate(chunk[:execute], 1):
                if run.episode.over:
                    break
                run.episode.step(action)
                run.actions.append(action)
                run.look(render=every > 0 and count % every == 0)
                if every and count % every:
                    run.frames.append(run.frames[-1])


class ModelPolicy:
    """The model behind an engine, with one session per episode."""

    def __init__(self, engine: Engine, instruction: str):
        self.engine, self.instruction = engine, instruction
        self.sessions = Sessions(engine, per_connection=engine.sessions, remembers=0)

    def every(self, execute: int) -> int:
        """The `every` of `play` that shows the model all that it looks at: a block's frames, where a window goes on, or
        the last one."""
        layout = self.engine.robot.layout
        goes_on = execute == layout.actions_per_block and self.engine.last_block != 1
        return layout.frame_stride if goes_on else execute

    def __call__(self, runs: list[Run]) -> list[np.ndarray]:
        chunks, most = [], self.engine.batch_sizes[-1]
        for start in range(0, len(runs), most):
            chunks += self._batch(runs[start:start + most])
        return chunks

    def _batch(self, runs: list[Run]) -> list[np.ndarray]:
        layout, dims = self.engine.robot.layout, len(self.engine.embodiment.action)
        observations = [next_observation(run, layout.actions_per_block, layout.frame_stride, self.instruction, dims)
                        for run in runs]
        planned = [self.sessions.plan(observation, self) for observation in observations]
        answers, chunks = self.engine.step([request for _, request in planned]), []
        for run, observation, (session, request), answer in zip(runs, observations, planned, answers, strict=True):
            if isinstance(answer, ModelError):
                raise answer
            self.sessions.done(session, observation, request, answer)
            session.busy = False
            run.imagined.append((len(run.actions), answer.latents))
            run.interventions.update(answer.interventions)
            run.gaps += [] if answer.gap is None else [answer.gap]
            chunks.append(answer.actions)
        return chunks


def next_observation(run: Run, actions_per_block: int, frame_stride: int, instruction: str,
                     action_dims: int) -> Observation:
    """What a run that needs a chunk shows: the block's frames where a whole chunk was executed, else the last one,
    which begins a new window."""
    since = len(run.actions) - run.imagined[-1][0] if run.imagined else 0
    seen = run.frames[-since:][frame_stride - 1::frame_stride] if since == actions_per_block else run.frames[-1:]
    views = {view: np.stack([frame[view] for frame in seen]) for view in seen[0]}
    in_flight = np.zeros((0, action_dims)) if run.in_flight is None else run.in_flight
    return Observation(str(run.seed), not run.imagined, instruction if run.instruction is None else run.instruction,
                       None, views, run.states[-1], in_flight)


def repeat_last(runs: list[Run]) -> list[np.ndarray]:
    """Repeats the last command; the first one is to stay."""
    return [np.array([run.actions[-1] if run.actions else run.episode.still()]) for run in runs]


class Mean:
    """Policy that always answers the mean command of training; of statistics per step those of a block."""

    def __init__(self, statistics: dict):
        self._mean = np.atleast_2d(statistics["action"]["mean"])

    def __call__(self, runs: list[Run]) -> list[np.ndarray]:
        return [self._mean for _ in runs]


class Random:
    """Policy that holds a command for a chunk, uniform between the 1st and 99th percentile of training."""

    def __init__(self, statistics: dict, hold: int):
        self._low, self._high = (np.atleast_2d(statistics["action"][name]) for name in ("q01", "q99"))
        self._low, self._high, self._hold = self._low.min(0), self._high.max(0), hold

    def __call__(self, runs: list[Run]) -> list[np.ndarray]:
        return [np.tile(self._sample(run), (self._hold, 1)) for run in runs]

    def _sample(self, run: Run) -> np.ndarray:
        return np.random.default_rng((run.seed, len(run.actions))).uniform(self._low, self._high)


def expert(runs: list[Run]) -> list[np.ndarray]:
    """Asks the scripted controller that recorded the training data, which knows the true state of the scene."""
    return [run.episode.expert()[None] for run in runs]


def scores(runs: list[Run]) -> dict:
    """Scores episodes: success rate with Wilson's 95% interval, best coverage with a bootstrap over episodes."""
    solved = [run.episode.solved for run in runs]
    best = np.array([max(run.episode.coverage) for run in runs])
    share = scipy.stats.binomtest(sum(solved), len(solved)).proportion_ci(CONFIDENCE, method="wilson")
    return {"episodes": len(runs), "successes": sum(solved), "success_rate": sum(solved) / len(runs),
            "success_rate_ci": [share.low, share.high], "coverage": float(best.mean()),
            "coverage_ci": mean_interval(best), "steps": float(np.mean([len(run.actions) for run in runs])),
            "each": [{"seed": run.seed, "solved": run.episode.solved, "coverage": round(max(run.episode.coverage), 4),
                      "steps": len(run.actions)} for run in runs]}


def paired_difference(one: dict, other: dict) -> dict:
    """Compares two `scores` seed by seed: best coverage of `one` minus that of `other`, mean and 95% interval."""
    gaps = np.array([a["coverage"] - b["coverage"] for a, b in zip(one["each"], other["each"], strict=True)])
    return {"coverage": float(gaps.mean()), "coverage_ci": mean_interval(gaps)}


def mean_interval(values: np.ndarray) -> list[float]:
    """Bootstraps the 95% interval of the mean."""
    return [float(values[0])] * 2 if np.ptp(values) == 0 else bootstrap((values,), np.mean)


def bootstrap(samples: tuple[np.ndarray, ...], statistic: Callable, **options) -> list[float]:
    """The 95% interval of a statistic, by resampling; options: of scipy's bootstrap."""
    found = scipy.stats.bootstrap(samples, statistic, confidence_level=CONFIDENCE, method="percentile",
                                  rng=np.random.default_rng(0), **options).confidence_interval
    return [float(found.low), float(found.high)]
