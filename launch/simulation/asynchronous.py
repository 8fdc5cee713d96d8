"""Robots that do not wait for their model: they ask for a chunk while they execute the one before.

The model's latency is injected, in control steps. An asynchronous robot sends an observation `latency + overlap` steps
before its plan runs out. It sends the actions along that it will execute until the answer comes, so that the chunk is
predicted from the last real frame and from what is on its way. It drops the part of the answer that is then past, and
over `overlap` steps the old plan fades into the new one. A synchronous robot holds its last command until the answer is
there. Both keep the control rate: in a step without a plan they hold.
"""

import dataclasses

import numpy as np

from launch.simulation.closed_loop import Policy, Run, mean_interval


@dataclasses.dataclass(frozen=True)
class Mode:
    """The way in which a robot asks for chunks and joins them."""

    latency: int  # control steps from an observation to its answer
    asynchronous: bool = True
    grounded: bool = True  # whether the model is told what is on its way
    overlap: int = 2  # steps over which one plan fades into the next

    @property
    def lead(self) -> int:
        """Number of steps that are left of the plan when the robot asks for the next chunk."""
        return self.latency + self.overlap if self.asynchronous else 0


@dataclasses.dataclass(eq=False)
class Executor:
    """Robot's side of one episode."""

    run: Run
    mode: Mode
    plan: list = dataclasses.field(default_factory=list)  # commands to come
    pending: tuple | None = None  # (step of the answer, chunk, step of the question, steps held until then)
    held: int = 0  # steps without a plan
    dropped: int = 0  # predicted actions that came too late

    @property
    def step(self) -> int:
        """Number of control steps so far."""
        return len(self.run.actions)

    @property
    def asks(self) -> bool:
        """Whether the robot sends an observation now."""
        return self.pending is None and len(self.plan) <= self.mode.lead

    def prepare(self) -> Run:
        """Notes what is on its way and returns the episode, for the policy."""
        on_its_way = self.plan[:self.mode.latency] if self.mode.asynchronous and self.mode.grounded else []
        self.run.in_flight = np.array(on_its_way) if on_its_way else None
        return self.run

    def receive(self, chunk: np.ndarray) -> None:
        """Takes the answer, which arrives `latency` steps from now."""
        self.pending = self.step + self.mode.latency, chunk, self.step, self.held

    def act(self) -> None:
        """Executes one control step."""
        if self.pending and self.step >= self.pending[0]:
            self._join(*self.pending[1:])
            self.pending = None
        if self.plan:
            command = self.plan.pop(0)
        else:
            self.held += 1
            command = self.run.episode.still(*self.run.actions[-1:])
        self.run.episode.step(command)
        self.run.actions.append(command)
        self.run.look()

    def _join(self, chunk: np.ndarray, asked: int, held: int) -> None:
        # The steps of the plan that were executed meanwhile are past. Held steps are not: the robot has not moved on.
        past = (self.step - asked) - (self.held - held)
        self.dropped += past
        self.plan = fade(self.plan, list(chunk[past:]))


def fade(old: list[np.ndarray], new: list[np.ndarray]) -> list[np.ndarray]:
    """Mixes the first len(old) commands of `new` with `old` ones, whose share falls from step to step."""
    count = min(len(old), len(new))
    share = [(i + 1) / (count + 1) for i in range(count)]
    return [w * b + (1 - w) * a for w, a, b in zip(share, old, new)] + new[count:]


def play(policy: Policy, runs: list[Run], mode: Mode, horizon: int) -> list[Executor]:
    """Drives every episode to its end, one control step after another.

    horizon: actions of a chunk. Raises ValueError where nothing of a chunk would be left.
    """
    if mode.lead >= horizon:
        raise ValueError(f"a latency of {mode.latency} and an overlap of {mode.overlap} steps leave nothing of chunks "
                         f"of {horizon} actions")
    executors = [Executor(run, mode) for run in runs]
    for run in runs:
        run.look()
    while active := [e for e in executors if not e.run.episode.over]:
        if asking := [e for e in active if e.asks]:
            for executor, chunk in zip(asking, policy([e.prepare() for e in asking]), strict=True):
                executor.receive(chunk)
        for executor in active:
            executor.act()
    return executors


def smoothness(executors: list[Executor]) -> dict:
    """Averages over episodes how smoothly they moved.

    jerk: norm of the commands' second difference in robot units (less is smoother), with its 95% interval; held_share:
    share of steps without a plan; dropped: number of predicted actions that came too late.
    """
    jerk = np.array([np.linalg.norm(np.diff(e.run.actions, 2, axis=0), axis=1).mean() for e in executors if e.step > 2])
    return {"jerk": float(jerk.mean()) if len(jerk) else None, "jerk_ci": mean_interval(jerk) if len(jerk) else None,
            "held_share": float(np.mean([e.held / e.step for e in executors])),
            "dropped": float(np.mean([e.dropped for e in executors]))}
