"""PushT as a task to be solved by a policy: a seed decides each episode (extra: sim)."""

import numpy as np

from data_pipelines.simulators.pusht.controller import PushController
from data_pipelines.simulators.pusht.recording import MAX_STEPS, SOLVED, start_poses
from data_pipelines.simulators.pusht.simulator import Simulator

SEED = 2  # evaluation episodes begin elsewhere than recorded episodes (0) and clips (1): dataset.py


class Episode:
    """One world, from its start (task: of recording.TASKS) until more than SOLVED of the goal is covered or `max_steps`
    are over."""

    def __init__(self, seed: int, image_size: int, max_steps: int = MAX_STEPS, task: str = "place"):
        self._simulator = Simulator(*start_poses(np.random.default_rng((seed, SEED)), task))
        self._size, self._steps = image_size, max_steps
        self._controller = PushController(self._simulator.goal)
        self.coverage: list[float] = []  # share of the goal, after each step

    def views(self) -> dict[str, np.ndarray]:
        """What the camera sees now: view -> uint8 [H, W, 3]."""
        return {"image": self._simulator.render(self._size)}

    def state(self) -> np.ndarray:
        """The agent's position, float64 [2], pixels."""
        return self._simulator.agent

    def still(self, last: np.ndarray | None = None) -> np.ndarray:
        """The command that holds the robot after command `last`, float64 [2]: commands are positions, so it is the last
        one again."""
        return self._simulator.agent if last is None else last

    def expert(self) -> np.ndarray:
        """The command that the scripted controller, which sees the block's pose, would give now, float64 [2]."""
        return self._controller.act(self._simulator.agent, self._simulator.block)

    def step(self, action: np.ndarray) -> None:
        """Executes a command [2], pixels, for 0.1 s."""
        self.coverage.append(self._simulator.step(action))

    @property
    def solved(self) -> bool:
        return bool(self.coverage) and self.coverage[-1] > SOLVED

    @property
    def over(self) -> bool:
        return self.solved or len(self.coverage) >= self._steps
