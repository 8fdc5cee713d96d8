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
from launch.serving.protocols import OpenPi
from launch.serving.servable import choose_robot
from launch.simulation.closed_loop import ModelPolicy, Policy, Run
from launch.simulation.served import Announced, ServedPolicy, ServerError

EPISODES = 10**6  # that a seed names, of those who ask one server


class FeatureError(ValueError):
    """What LeRobot gives or takes is not what the policy takes or gives."""


class Episodes:
    """Episodes that run side by side. What is seen at every step goes to the model with the next question, as to a
    client's; a chunk of which less is executed is followed by a new window."""

    def __init__(self, policy: Policy, robot: Announced, cameras: Mapping[str, str], execute: int, *, most: int,
                 first: int = 0):
        """cameras: view -> LeRobot's key; execute: actions of each chunk; most: episodes at once; first: the number of
        the first. Raises ValueError where a chunk has fewer actions."""
        self.policy, self.robot, self.cameras, self.execute = policy, robot, cameras, execute
        if not 1 <= execute <= robot.horizon:
            raise ValueError(f"n_action_steps = {execute}: a chunk has {robot.horizon} actions; give 1 to that")
        self.most, self.opened = most, first
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
            del run.frames[:-self.robot.actions_per_block], run.states[:-1], run.imagined[:-1]

    def _begin(self, rows: int) -> None:
        if rows > self.most:
            raise ValueError(f"{rows} episodes at once, and there is room for {self.most}: say "
                             f"--policy.sessions={rows}")
        self.runs = [Run(self.opened + row, None) for row in range(rows)]
        self.opened += rows

    def _states(self, batch: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        names = self.robot.state
        if not names:
            return np.zeros((rows, 0))
        if STATE not in batch:
            raise FeatureError(f"LeRobot's observation lacks {STATE!r}, the {len(names)} numbers {', '.join(names)} "
                               f"of robot {self.robot.embodiment!r}")
        check_length(STATE, batch[STATE].shape[-1], names, self.robot)
        return batch[STATE].astype(np.float64)

    def _instruction(self, task: str) -> str:
        if not (task := task or self.robot.instruction):
            raise FeatureError(f"LeRobot's observation has no task, and robot {self.robot.embodiment!r} no "
                               "instruction of its own: say what it shall do")
        return task


def open_episodes(folder: str | Path, device: str, *, sessions: int, seed: int, execute: int) -> Episodes:
    """What acts by a folder of `launch.export --format=lerobot`; execute: 0 for whole chunks. Raises WeightsError, or
    ValueError, where it cannot."""
    ours = read_config(folder)
    model = open_export(folder, device)
    engine = Engine(model, choose_robot(model, ours["embodiment"], ours["dataset"]), sessions=sessions, seed=seed)
    robot = announce(engine.robot)
    return Episodes(ModelPolicy(engine, ""), robot, ours["cameras"], execute or robot.horizon, most=sessions)


def ask_server(folder: str | Path, address: str, token_file: str, *, sessions: int, seed: int,
               execute: int) -> Episodes:
    """What acts by a server of the folder's model, whose weights are not read. The noise follows the server's seed and
    an episode's number, which `seed` begins: two that ask one server at once need different ones. Raises ServerError,
    and as `open_episodes`."""
    ours, policy = read_config(folder), ServedPolicy(address, token_file)
    robot = policy.announced
    if robot.embodiment != ours["embodiment"] or robot.sizes.keys() != ours["cameras"].keys():
        raise ServerError(f"{policy.address} drives robot {robot.embodiment!r} with cameras {sorted(robot.sizes)}, and "
                          f"{folder} is for {ours['embodiment']!r} with {sorted(ours['cameras'])}: serve that export")
    return Episodes(policy, robot, ours["cameras"], execute or robot.horizon, most=sessions, first=seed * EPISODES)


def announce(robot: Robot) -> Announced:
    """What a server would say of the robot."""
    size = robot.layout.height, robot.layout.width
    return Announced.read(OpenPi(robot, size, robot.embodiment.instruction).metadata())


def pictures(batch: Mapping[str, np.ndarray], key: str, view: str, robot: Announced) -> np.ndarray:
    """LeRobot's pictures, float32 [rows, 3, H, W] from 0 to 1, as the cameras took them, uint8 [rows, H, W, 3]."""
    if key not in batch:
        seen = sorted(name for name in batch if name.startswith("observation.image"))
        rename = f"; rename yours: --rename_map='{json.dumps({seen[0]: key})}'" if seen else ""
        raise FeatureError(f"LeRobot's observation lacks {key!r}, which is camera {view!r} of robot "
                           f"{robot.embodiment!r}; it has {seen or 'no camera'}{rename}")
    found = batch[key]
    if found.ndim != 4 or found.shape[1] != 3 or found.dtype != np.float32 or not found.size:
        raise FeatureError(f"{key!r} should be float32 [rows, 3, height, width], found {found.dtype} "
                           f"{list(found.shape)}")
    if not 0 <= found.min() <= found.max() <= 1:
        raise FeatureError(f"{key!r} should be from 0 to 1, found {found.min():g} to {found.max():g}")
    return np.rint(found * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def check_action(robot: Announced, shape: tuple[int, ...]) -> None:
    """Raises FeatureError where LeRobot's environment or dataset has other actions than the robot."""
    check_length(ACTION, shape[-1] if shape else 0, robot.action, robot)


def check_length(key: str, found: int, names: list[str], robot: Announced) -> None:
    """Raises FeatureError naming the dimensions that one side lacks."""
    if found == len(names):
        return
    lack = f"LeRobot lacks {', '.join(names[found:])}" if found < len(names) else \
        f"the policy has nothing for dimensions {len(names)} to {found - 1}"
    raise FeatureError(f"LeRobot's {key!r} has {found} dimensions, and robot {robot.embodiment!r} has "
                       f"{len(names)} ({', '.join(names)}): {lack}")
