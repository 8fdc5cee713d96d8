"""A policy as LeRobot asks one: a batch of observations per control step, each row an episode.

The plug-in in plugins/lerobot_policy_wamax calls this with arrays; nothing here needs LeRobot.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines.robots.robot import Robot
from launch.exporting.exported import open_export
from launch.exporting.lerobot import ACTION, STATE, read_config
from launch.serving.engine import Engine
from launch.serving.servable import choose_robot
from launch.simulation.closed_loop import ModelPolicy, Run


class FeatureError(ValueError):
    """What LeRobot gives or takes is not what the policy takes or gives."""


class Episodes:
    """Episodes that run side by side. What is seen at every step goes to the model with the next question, as to a
    client's; a chunk of which less is executed is followed by a new window."""

    def __init__(self, engine: Engine, cameras: Mapping[str, str], execute: int):
        """cameras: view -> LeRobot's key; execute: actions of each chunk. Raises ValueError where a chunk has fewer."""
        self.engine, self.robot, self.cameras, self.execute = engine, engine.robot, cameras, execute
        if not 1 <= execute <= self.robot.horizon:
            raise ValueError(f"n_action_steps = {execute}: a chunk has {self.robot.horizon} actions; give 1 to that")
        self.policy, self.opened = ModelPolicy(engine, ""), 0
        self.reset()

    def reset(self) -> None:
        """Ends all episodes."""
        self.runs: list[Run] = []
        self._ready: list[np.ndarray] = []  # [rows, action dims] each

    def act(self, batch: Mapping[str, np.ndarray], tasks: list[str]) -> np.ndarray:
        """Commands float32 [rows, action dims] for what is seen now; batch: see `chunk`."""
        if self._ready:
            self._look(batch, tasks)
        else:
            self._ready = list(self.chunk(batch, tasks).swapaxes(0, 1)[:self.execute])
        commands = self._ready.pop(0)
        for run, command in zip(self.runs, commands, strict=True):
            run.actions.append(command)
        return commands

    def chunk(self, batch: Mapping[str, np.ndarray], tasks: list[str]) -> np.ndarray:
        """Chunks of commands float32 [rows, horizon, action dims], absolute, in robot units.

        batch: each camera float32 [rows, 3, H, W] from 0 to 1, observation.state [rows, state dims].
        Raises FeatureError naming the camera or dimension that does not fit.
        """
        self._look(batch, tasks)
        return np.stack(self.policy(self.runs))

    def _look(self, batch: Mapping[str, np.ndarray], tasks: list[str]) -> None:
        views = {view: pictures(batch, key, view, self.robot) for view, key in self.cameras.items()}
        rows = len(next(iter(views.values())))
        states = self._states(batch, rows)
        if not self.runs:
            self._begin(rows)
        if not len(self.runs) == len(states) == len(tasks) == rows:
            raise FeatureError(f"found {rows} pictures, {len(states)} states and {len(tasks)} tasks for "
                               f"{len(self.runs)} episodes under way; call reset() where new ones begin")
        for row, run in enumerate(self.runs):
            run.frames.append({view: frames[row] for view, frames in views.items()})
            run.states.append(states[row])
            run.instruction = self._instruction(tasks[row])
            del run.frames[:-self.robot.layout.actions_per_block], run.states[:-1], run.imagined[:-1]

    def _begin(self, rows: int) -> None:
        if rows > self.engine.sessions:
            raise ValueError(f"{rows} episodes at once, and there is room for {self.engine.sessions}: say "
                             f"--policy.sessions={rows}")
        self.runs = [Run(self.opened + row, None) for row in range(rows)]
        self.opened += rows

    def _states(self, batch: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        names = [dim.name for dim in self.robot.embodiment.state]
        if not names:
            return np.zeros((rows, 0))
        if STATE not in batch:
            raise FeatureError(f"LeRobot's observation lacks {STATE!r}, the {len(names)} numbers {', '.join(names)} "
                               f"of robot {self.robot.embodiment.name!r}")
        check_length(STATE, batch[STATE].shape[-1], names, self.robot)
        return batch[STATE].astype(np.float64)

    def _instruction(self, task: str) -> str:
        if not (task := task or self.robot.embodiment.instruction):
            raise FeatureError(f"LeRobot's observation has no task, and robot {self.robot.embodiment.name!r} no "
                               "instruction of its own: say what it shall do")
        return task


def open_episodes(folder: str | Path, device: str, *, sessions: int, seed: int, execute: int) -> Episodes:
    """What acts by a folder of `launch.export --format=lerobot`; execute: 0 for whole chunks. Raises WeightsError, or
    ValueError, where it cannot."""
    ours = read_config(folder)
    model = open_export(folder, device)
    robot = choose_robot(model, ours["embodiment"], ours["dataset"])
    return Episodes(Engine(model, robot, sessions=sessions, seed=seed), ours["cameras"], execute or robot.horizon)


def pictures(batch: Mapping[str, np.ndarray], key: str, view: str, robot: Robot) -> np.ndarray:
    """LeRobot's pictures, float32 [rows, 3, H, W] from 0 to 1, as the cameras took them, uint8 [rows, H, W, 3]."""
    if key not in batch:
        seen = sorted(name for name in batch if name.startswith("observation.image"))
        rename = f"; rename yours: --rename_map='{json.dumps({seen[0]: key})}'" if seen else ""
        raise FeatureError(f"LeRobot's observation lacks {key!r}, which is camera {view!r} of robot "
                           f"{robot.embodiment.name!r}; it has {seen or 'no camera'}{rename}")
    found = batch[key]
    if found.ndim != 4 or found.shape[1] != 3 or found.dtype != np.float32 or not found.size:
        raise FeatureError(f"{key!r} should be float32 [rows, 3, height, width], found {found.dtype} "
                           f"{list(found.shape)}")
    if not 0 <= found.min() <= found.max() <= 1:
        raise FeatureError(f"{key!r} should be from 0 to 1, found {found.min():g} to {found.max():g}")
    return np.rint(found * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def check_action(robot: Robot, shape: tuple[int, ...]) -> None:
    """Raises FeatureError where LeRobot's environment or dataset has other actions than the robot."""
    check_length(ACTION, shape[-1] if shape else 0, [dim.name for dim in robot.embodiment.action], robot)


def check_length(key: str, found: int, names: list[str], robot: Robot) -> None:
    """Raises FeatureError naming the dimensions that one side lacks."""
    if found == len(names):
        return
    lack = f"LeRobot lacks {', '.join(names[found:])}" if found < len(names) else \
        f"the policy has nothing for dimensions {len(names)} to {found - 1}"
    raise FeatureError(f"LeRobot's {key!r} has {found} dimensions, and robot {robot.embodiment.name!r} has "
                       f"{len(names)} ({', '.join(names)}): {lack}")
