"""A Meta-World task to be solved: episodes that a seed decides, driven from outside (extra: sim)."""

import numpy as np

from data_pipelines.simulators.metaworld import simulator
from data_pipelines.simulators.metaworld.simulator import Simulator

MAX_STEPS = 60  # 3 seconds; the experts need 8 to 20 steps
SEED = 2  # evaluation episodes are others than recorded ones (0): dataset.py
TASKS = tuple(simulator.TASKS)


def draw_seed(*parts: int) -> int:
    """One number for the simulator's generator."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Episode:
    """One world. Ends when the task is done, or after `max_steps`."""

    def __init__(self, task: str, seed: int, image_size: int, max_steps: int = MAX_STEPS, look: str = "plain"):
        self._simulator = Simulator(task, draw_seed(seed, SEED), look)
        self._size, self._steps = image_size, max_steps
        self.coverage: list[float] = []  # the environment's reward after each step, of at most 1

    def views(self) -> dict[str, np.ndarray]:
        """View -> uint8 [H, W, 3], as now."""
        return {"image": self._simulator.render(self._size)}

    def state(self) -> np.ndarray:
        """float64 [4]: hand in m, opening of the gripper."""
        return self._simulator.state

    def still(self, last: np.ndarray | None = None) -> np.ndarray:
        """What holds the robot after command `last`: float64 [4]. Commands are differences: none."""
        return np.zeros(4)

    def expert(self) -> np.ndarray:
        """What the scripted controller would do now: float64 [4]."""
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
