"""Changes recorded actions into what a robot is to learn, where a data set records something else; an entry's
`conventions` name them.

    openvla_bridge  BridgeData V2: the first step, whose action is zero, begins no window; movements are the differences
                    of the state that followed, the gripper is 0 or 1, whatever it was between them on the way
    openvla_rt_1    RT-1: commands to close (1), open (-1) or keep the gripper become its wanted state, 1 open and 0
                    closed; before the first command it is the opposite of that
    next_action     AgiBot World: a frame's action equals its state; what leads there is the next frame's
    first_pose      RoboTwin as arXiv 2601.21998 uses it (code at 58c2ae5): of each arm's eight
                    numbers (xyz, quaternion xyzw, gripper) position and rotation are relative to the recording's first

The first two are those of OpenVLA's transforms (openvla/openvla, prismatic/vla/datasets/rlds/oxe), to which results on
these sets refer. An action's last dimension is the gripper. State and pictures stay as they are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.episode import BadEpisode, Episode, Source
from data_pipelines.robots.embodiment import check_known

CLOSED, OPEN = 0.05, 0.95  # a gripper below the one or above the other has arrived
MOVES = 0.1  # a movement of the gripper that is meant


class Convention(NamedTuple):
    """What is done to a recording."""

    change: Callable[[np.ndarray, Any], np.ndarray]  # (action, state or None) [length, dims] -> action
    first: int = 0  # the first step at which a window may begin
    needs_state: bool = False


def _bridge(action: np.ndarray, state: np.ndarray) -> np.ndarray:
    gripper, found = action[:, -1], action.copy()
    found[:-1, :-1] = np.diff(state[:, :action.shape[1] - 1], axis=0)
    arrived = (gripper < CLOSED) | (gripper > OPEN)
    arrived[-1] = True
    # the place of the next step at which it has arrived, this one included
    upcoming = np.minimum.accumulate(np.where(arrived, np.arange(len(gripper)), len(gripper))[::-1])[::-1]
    found[:, -1] = gripper[upcoming] > OPEN
    return found


def _rt_1(action: np.ndarray, state) -> np.ndarray:
    found, command = action.copy(), np.where(np.abs(action[:, -1]) > MOVES, -np.sign(action[:, -1]), 0)  # 1: to open
    first = command[np.flatnonzero(command)[:1]]
    latest = np.maximum.accumulate(np.where(command != 0, np.arange(len(command)), -1))
    found[:, -1] = np.where(latest < 0, -first[0] if len(first) else 1, command[latest]) > 0
    return found


def _next(action: np.ndarray, state) -> np.ndarray:
    return np.concatenate([action[1:], action[-1:]])


def _first_pose(action: np.ndarray, state) -> np.ndarray:
    found = action.astype(np.float64)
    for at in range(0, action.shape[1] - 7, 8):
        found[:, at:at + 3] -= action[0, at:at + 3]
        found[:, at + 3:at + 7] = _turned_back(found[:, at + 3:at + 7])
    return found


def _turned_back(quaternions: np.ndarray) -> np.ndarray:
    """R0^-1 R of rotations [length, xyzw], with w of at least 0."""
    first, w = -quaternions[0, :3], quaternions[0, 3]
    xyz = w * quaternions[:, :3] + quaternions[:, 3:] * first + np.cross(first, quaternions[:, :3])
    found = np.concatenate([xyz, w * quaternions[:, 3:] - quaternions[:, :3] @ first[:, None]], 1)
    return np.where(found[:, 3:] < 0, -found, found)


CONVENTIONS = {"openvla_bridge": Convention(_bridge, first=1, needs_state=True), "openvla_rt_1": Convention(_rt_1),
               "next_action": Convention(_next), "first_pose": Convention(_first_pose)}


class Conventional:
    """A `Source` whose recordings are changed by conventions, one after another."""

    def __init__(self, name: str, source: Source, names: tuple[str, ...]):
        """Raises ValueError naming the nearest convention where one is unknown."""
        for each in names:
            check_known(f"dataset {name!r}: conventions", each, CONVENTIONS)
        self._name, self._source, self._conventions = name, source, names

    @property
    def files(self) -> list[str]:
        """The files of the source."""
        return self._source.files

    def lengths(self) -> np.ndarray:
        """The steps of each episode, int64 [episodes]."""
        return self._source.lengths()

    def rates(self) -> np.ndarray:
        """The steps per second of each episode, float64 [episodes]."""
        return self._source.rates()

    def stretches(self) -> np.ndarray:
        """The stretches where windows may begin, as `Source` says."""
        kept = self._source.stretches().copy()
        kept[:, 1] = np.maximum(kept[:, 1], max(CONVENTIONS[name].first for name in self._conventions))
        return kept[kept[:, 1] < kept[:, 2]]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Episode:
        episode = self._source[index]
        action, state = episode.action, episode.state
        needs_state = any(CONVENTIONS[name].needs_state for name in self._conventions)
        if action is None or (needs_state and (state is None or state.shape[1] < action.shape[1] - 1)):
            raise BadEpisode(f"{self._name} episode {index}: conventions {self._conventions} need an action"
                             + (" and the state that it moves" if needs_state else ""))
        for name in self._conventions:
            action = CONVENTIONS[name].change(action, state).astype(np.float32)
        return dataclasses.replace(episode, action=action)
