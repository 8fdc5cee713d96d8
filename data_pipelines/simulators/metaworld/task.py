"""A Meta-World task to be solved by a policy: a seed decides each episode (extra: sim)."""

import numpy as np

from data_pipelines.simulators.metaworld import simulator
from data_pipelines.simulators.metaworld.simulator import Simulator

MAX_STEPS = 60  # 3 seconds; the experts need 8 to 20 steps
SEED = 2  # evaluation episodes are others than recorded ones (0): dataset.py
TASKS = tuple(simulator.TASKS)


def combined_seed(*parts: int) -> int:
    """One seed for the simulator's generator, made of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Episode:
    """One world, from its start until the task is done or `max_steps` are over."""

    def __init__(self, task: str, seed: int, image_size: int, max_steps: int = MAX_STEPS, look: str = "plain"):
        self._simulator = Simulator(task, combined_seed(seed, SEED), look)
        self._size, self._steps = image_size, max_steps
        self.coverage: list[float] = []  # the environment's reward after each step, of at most 1

    def views(self) -> dict[str, np.ndarray]:
        """What the cameras see now: view -> uint8 [H, W, 3]."""
        return {"image": self._simulator.render(self._size)}

    def state(self) -> np.ndarray:
        """The hand's position in m and the opening of the gripper, float64 [4]."""
        return self._simulator.state

    def still(self, last: np.ndarray | None = None) -> np.ndarray:
        """The command that holds the robot after command `last`, float64 [4]: commands are differences, so it is
        zero."""
        return np.zeros(4)

    def expert(self) -> np.ndarray:
        """The command that the scripted controller would give now, float64 [4]."""
        return self._simulator.expert()

    def step(self, action: np.ndarray) -> None:
        """Executes a command [4] for 50 ms."""
        self._simulator.step(action)
        self.coverage.append(self._simulator.reward)

    @property
    def solved(self) -> bool:
        return self._simulator.solved

    @property
    def over(self) -> bool:
        return self.solved or len(self.coverage) >= self._steps
