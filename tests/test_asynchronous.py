"""Latency: who waits, what is dropped, what is sent along, and how plans are joined."""

import numpy as np
import pytest

from launch.simulation import asynchronous
from launch.simulation.asynchronous import Executor, Mode, fade
from launch.simulation.closed_loop import Run

HORIZON = 8


class Line:
    """A robot on a line that goes where it is told; 40 steps."""

    def __init__(self):
        self.x, self.steps, self.solved, self.coverage = 0.0, 0, False, [0.0]

    def views(self):
        return {}

    def state(self):
        return np.array([self.x])

    def still(self, last=None):
        return self.state() if last is None else last

    def step(self, action):
        self.x, self.steps = float(action[0]), self.steps + 1

    @property
    def over(self):
        return self.steps >= 40


class Forward:
    """Wants one unit more at every step from where the robot will be, given what is on its way; with `hasty`, two in
    every second chunk."""

    def __init__(self, hasty: bool = False):
        self.asked, self.hasty = [], hasty

    def __call__(self, runs):
        run, = runs
        flight = [] if run.in_flight is None else [float(a[0]) for a in run.in_flight]
        self.asked.append((len(run.actions), flight))
        start = run.states[-1][0]
        known = np.array(flight)
        speed = 2 if self.hasty and len(self.asked) % 2 else 1
        rest = (known[-1] if flight else start) + speed * np.arange(1, HORIZON + 1 - len(flight))
        return [np.concatenate([known, rest])[:, None]]


def play(mode, hasty=False):
    run, policy = Run(0, Line()), Forward(hasty)
    executor, = asynchronous.play(policy, [run], mode, HORIZON)
    return executor, policy


def positions(executor):
    return [float(a[0]) for a in executor.run.actions]


def test_without_latency_nobody_waits():
    for asynchronous_ in (True, False):
        executor, _ = play(Mode(0, asynchronous=asynchronous_, overlap=0))
        assert positions(executor) == list(range(1, 41)) and executor.held == executor.dropped == 0


def test_synchronous_holds_for_every_chunk():
    executor, policy = play(Mode(3, asynchronous=False))
    assert positions(executor)[:12] == [0, 0, 0, *range(1, 9), 8] and executor.held == 3 * 4
    assert [step for step, _ in policy.asked] == [0, 11, 22, 33] and executor.dropped == 0


def test_asynchronous_goes_on_and_knows_what_is_on_its_way():
    """After the first answer there is a plan at every step; the first `latency` actions of later chunks are past."""
    executor, policy = play(Mode(3, overlap=0))
    assert positions(executor) == [0, 0, 0, *range(1, 38)] and executor.held == 3
    assert policy.asked[:3] == [(0, []), (8, [6, 7, 8]), (13, [11, 12, 13])]
    assert executor.dropped == 3 * 6  # of all chunks but the first and the one that came too late


def test_grounding_joins_chunks_smoothly():
    """A policy that is not told thinks that it has moved at its new speed since it was asked: the robot jumps."""
    def step(mode):
        return max(np.diff(positions(play(mode, hasty=True)[0])))

    assert step(Mode(3, overlap=0)) == 2 and step(Mode(3, overlap=0, grounded=False)) == 5


def test_plans_fade():
    old, new = [np.array([0.0])] * 3, [np.array([4.0])] * 5
    assert [float(x[0]) for x in fade(old, new)] == [1, 2, 3, 4, 4]
    assert fade([], new) == new and len(fade(old * 3, new)) == 5


def test_a_latency_that_leaves_nothing():
    with pytest.raises(ValueError, match="latency of 7 and an overlap of 2 steps leave nothing of chunks of 8"):
        play(Mode(7))


def test_smoothness_of_a_straight_line():
    executor = Executor(Run(0, Line(), actions=[np.array([float(i), 0.0]) for i in range(5)]), Mode(0))
    assert asynchronous.smoothness([executor]) == {"jerk": 0.0, "jerk_ci": [0.0, 0.0], "held_share": 0.0,
                                                      "dropped": 0.0}
