"""A robot that does not wait for its model: chunks are asked for while the one before is executed.

The model's latency is injected, in control steps. Asynchronous: an observation is sent `latency + overlap` steps before
the plan runs out; the actions that will be executed until the answer comes are sent along, so that the chunk is
predicted from the last real frame and from what is on its way (world_model/families/base/sampler.py, Known); the part
of the answer that is then past is dropped; over `overlap` steps the old plan fades into the new one. Synchronous: the
robot holds its last command until the answer is there. The control rate is kept either way: a step without a plan
holds.
"""

import dataclasses

import numpy as np

from launch.simulation.closed_loop import Policy, Run, mean_interval


@dataclasses.dataclass(frozen=True)
class Mode:
    """How chunks are asked for and joined."""

    latency: int  # control steps from an observation to its answer
    asynchronous: bool = True
    grounded: bool = True  # the model is told what is on its way
    overlap: int = 2  # steps over which one plan fades into the next

    @property
    def lead(self) -> int:
        """Steps of the plan that are left when the next chunk is asked for."""
        return self.latency + self.overlap if self.asynchronous else 0


@dataclasses.dataclass(eq=False)
class Executor:
    """The robot's side of one episode."""

    run: Run
    mode: Mode
    plan: list = dataclasses.field(default_factory=list)  # commands to come
    pending: tuple | None = None  # (step of the answer, chunk, step of the question, steps held until then)
    held: int = 0  # steps without a plan
    dropped: int = 0  # predicted actions that came too late

    @property
    def step(self) -> int:
        """Control steps so far."""
        return len(self.run.actions)

    @property
    def asks(self) -> bool:
        """Whether to send an observation now."""
        return self.pending is None and len(self.plan) <= self.mode.lead

    def prepare(self) -> Run:
        """The episode with what is on its way."""
        on_its_way = self.plan[:self.mode.latency] if self.mode.asynchronous and self.mode.grounded else []
        self.run.in_flight = np.array(on_its_way) if on_its_way else None
        return self.run

    def receive(self, chunk: np.ndarray) -> None:
        """The answer, which arrives `latency` steps from now."""
        self.pending = self.step + self.mode.latency, chunk, self.step, self.held

    def act(self) -> None:
        """One control step."""
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
        # What was done of the plan meanwhile is past. Steps that were held are not: the robot has not moved on.
        past = (self.step - asked) - (self.held - held)
        self.dropped += past
        self.plan = fade(self.plan, list(chunk[past:]))


def fade(old: list[np.ndarray], new: list[np.ndarray]) -> list[np.ndarray]:
    """`new`, with its first len(old) commands mixed with `old` ones: old counts less from step to step."""
    count = min(len(old), len(new))
    share = [(i + 1) / (count + 1) for i in range(count)]
    return [w * b + (1 - w) * a for w, a, b in zip(share, old, new)] + new[count:]


def play(policy: Policy, runs: list[Run], mode: Mode, horizon: int) -> list[Executor]:
    """Drives every episode to its end, one control step after another.

    Raises ValueError where nothing of a chunk would be left.
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
    """Means over episodes: commands' second difference (robot units; less is smoother) with its 95% interval, share of
    steps without a plan, and of predicted actions dropped as stale."""
    jerk = np.array([np.linalg.norm(np.diff(e.run.actions, 2, axis=0), axis=1).mean() for e in executors if e.step > 2])
    return {"jerk": float(jerk.mean()) if len(jerk) else None, "jerk_ci": mean_interval(jerk) if len(jerk) else None,
            "held_share": float(np.mean([e.held / e.step for e in executors])),
            "dropped": float(np.mean([e.dropped for e in executors]))}
