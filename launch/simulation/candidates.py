"""Policies by name, of different quality, to be ranked: scripted ones and checkpoints of runs."""

import dataclasses

import numpy as np

from launch.serving.engine import Engine
from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from launch.simulation import closed_loop
from launch.simulation.closed_loop import Mean, ModelPolicy, Policy, Random, Run

NAMES = "expert, expert:NOISE (in standard deviations of training's commands), random, mean, repeat_last, WORKDIR@STEP"
LEAST = 8  # policies: an order of fewer says little


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A policy that is asked whenever `execute` of its commands have been executed."""

    name: str
    policy: Policy
    execute: int = 1


class NoisyExpert:
    """The scripted controller, disturbed by Gaussian noise of so many standard deviations of training's commands."""

    def __init__(self, statistics: dict, noise: float):
        self._deviation = noise * np.atleast_2d(statistics["action"]["std"]).mean(0)

    def __call__(self, runs: list[Run]) -> list[np.ndarray]:
        return [chunk + self._noise(run) for run, chunk in zip(runs, closed_loop.expert(runs), strict=True)]

    def _noise(self, run: Run) -> np.ndarray:
        return np.random.default_rng((run.seed, len(run.actions))).normal(0, self._deviation)


def make(names: list[str], world: Engine, instruction: str) -> list[Candidate]:
    """The policies of those names for the world's robot. Raises ValueError where a name means nothing, stands twice, or
    there are too few; CheckpointError where a run has no such checkpoint."""
    if len(set(names)) < len(names):
        raise ValueError(f"--policies: {next(name for name in names if names.count(name) > 1)!r} stands twice")
    if len(names) < LEAST:
        raise ValueError(f"--policies: found {len(names)}, an order of fewer than {LEAST} says little; "
                         f"there are {NAMES}")
    return [_candidate(name, world, instruction) for name in names]


def _candidate(name: str, world: Engine, instruction: str) -> Candidate:
    statistics, length = world.robot.statistics, world.robot.horizon
    kind, _, noise = name.partition(":")
    if kind == "expert":
        try:
            share = float(noise or 0)
        except ValueError as error:
            raise ValueError(f"--policies: {name!r}: expected expert:NOISE, a number; there are {NAMES}") from error
        return Candidate(name, NoisyExpert(statistics, share))
    if name == "repeat_last":
        return Candidate(name, closed_loop.repeat_last)
    if name in ("random", "mean"):
        policy = Random(statistics, length) if name == "random" else Mean(statistics)
        return Candidate(name, policy, length if name == "random" else 1)
    workdir, at, step = name.rpartition("@")
    if not at or not step.isdecimal():
        raise ValueError(f"--policies: {name!r}: there are {NAMES}")
    return _checkpoint(name, workdir, int(step), world, instruction)


def _checkpoint(name: str, workdir: str, step: int, world: Engine, instruction: str) -> Candidate:
    restored = restore(workdir, step)
    robot = choose_robot(restored, world.embodiment.name, None)
    if robot.horizon < world.robot.horizon:
        raise ValueError(f"--policies: {name!r} answers {robot.horizon} commands at a time, a block of the world has "
                         f"{world.robot.horizon}: it would have to act before it sees what came")
    engine = Engine(restored, robot, sessions=world.sessions, batch_sizes=world.batch_sizes)
    return Candidate(name, ModelPolicy(engine, instruction), world.robot.horizon)
