"""PushT as a robot of LeRobot's, so that lerobot-rollout runs where there is none. LeRobot finds the class by the name
of this package:

    lerobot-rollout --robot.discover_packages_path=benchmarks.simulatedpusht --robot.type=simulated_pusht ...
"""

from dataclasses import dataclass
from typing import ClassVar

import gym_pusht  # noqa: F401 (registers the environment)
import gymnasium
import numpy as np
from lerobot.robots import Robot, RobotConfig


@RobotConfig.register_subclass("simulated_pusht")
@dataclass(kw_only=True)
class SimulatedPushTConfig(RobotConfig):
    """The robot's options; it has none of its own."""


class SimulatedPushT(Robot):
    """A pusher whose two "joints" are its place in the plane, seen by a camera named image."""

    config_class, name = SimulatedPushTConfig, "simulated_pusht"
    is_calibrated = True
    action_features: ClassVar = {"x.pos": float, "y.pos": float}
    observation_features: ClassVar = action_features | {"image": (96, 96, 3)}

    def __init__(self, config: SimulatedPushTConfig):
        super().__init__(config)
        self._env, self._seen = None, {}

    @property
    def is_connected(self) -> bool:
        """Whether an episode has begun."""
        return self._env is not None

    def connect(self, calibrate: bool = True) -> None:
        """Begins an episode."""
        self._env = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", max_episode_steps=10**9)
        self._seen, _ = self._env.reset(seed=0)

    def get_observation(self) -> dict:
        """The last observation."""
        x, y = map(float, self._seen["agent_pos"])
        return {"x.pos": x, "y.pos": y, "image": self._seen["pixels"]}

    def send_action(self, action: dict) -> dict:
        """Moves; returns what was asked for."""
        self._seen, *_ = self._env.step(np.array([action["x.pos"], action["y.pos"]], np.float32))
        return action

    def calibrate(self) -> None:
        """Nothing is to be done."""

    def configure(self) -> None:
        """Nothing is to be done."""

    def disconnect(self) -> None:
        """Ends the episode."""
        self._env.close()
        self._env = None
