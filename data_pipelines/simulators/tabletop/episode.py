"""A task at a table to be solved by a policy: a seed decides each episode (extra: sim)."""

import numpy as np

from data_pipelines.simulators.tabletop.tasks import TASKS, combined_seed, make_world

SEED = 2  # evaluation episodes are others than recorded ones (0): dataset.py


class Episode:
    """One world, from its start until the task is done or `max_steps` (default: the task's) are over."""

    def __init__(self, task: str, seed: int, image_size: int, max_steps: int | None = None, look: str = "plain"):
        self._world = make_world(task, combined_seed(seed, SEED), look)
        self._size, self._steps = image_size, max_steps or TASKS[task].steps
        self.coverage: list[float] = []  # the environment's reward after each step, of at most 1

    def views(self) -> dict[str, np.ndarray]:
        """What the cameras see now: view -> uint8 [H, W, 3]."""
        return {"image": self._world.render(self._size)}

    def state(self) -> np.ndarray:
        """The robot's numbers, float64 [state dims]."""
        return self._world.state

    def still(self, last: np.ndarray | None = None) -> np.ndarray:
        """The command that holds the robot after command `last`, float64 [action dims]: commands are differences, so it
        is zero."""
        return np.zeros(len(self._world.NOISE))

    def expert(self) -> np.ndarray:
        """The command that the scripted controller would give now, float64 [action dims]."""
        return self._world.expert()

    def step(self, action: np.ndarray) -> None:
        """Executes a command for 50 ms."""
        self._world.step(action)
        self.coverage.append(self._world.reward)

    @property
    def solved(self) -> bool:
        return self._world.solved

    @property
    def over(self) -> bool:
        return self.solved or len(self.coverage) >= self._steps
