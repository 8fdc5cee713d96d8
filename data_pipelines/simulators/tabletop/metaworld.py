"""Meta-World (package metaworld): a Sawyer arm at a table (extra: sim).

A command [4] is held for REPEAT steps of the simulator, which makes 20 commands a second. It is a difference of the
hand's position, -1 to 1 for 1 cm a step of the simulator, and the force of the gripper. A state [4] is the hand's
position in m and the gripper's opening, 0 to 1; where the object stands has to be seen.
"""

import copy
import functools
import warnings

import numpy as np

from data_pipelines.simulators.tabletop.rendering import paint, render
from data_pipelines.simulators.tabletop.tasks import LOOKS, TASKS

REPEAT = 4  # steps of the simulator (80 Hz) that a command is held


class World:
    """One world of a task. `seed` decides where everything stands; `look` is a name in LOOKS."""

    NOISE = np.array([1.0, 1.0, 1.0, 0.0])  # standard deviation of a command's numbers at noise 1

    def __init__(self, task: str, seed: int, look: str = "plain"):
        self._env = _new_world(task)
        self._camera = TASKS[task].turned if "turned" in LOOKS[look] else TASKS[task].camera
        paint(self._env.model, LOOKS[look])
        self._expert = _expert(task)
        self._env.seed(seed)
        self._observation, _ = self._env.reset()
        self.reward, self.solved = 0.0, False

    @property
    def state(self) -> np.ndarray:
        """The hand's x, y and z in m, and the opening of the gripper: float64 [4]."""
        return self._observation[:4].copy()

    def expert(self) -> np.ndarray:
        """The command that the task's scripted controller, which knows where everything stands, would give now: float64
        [4]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that commands above 1 are cut off
            return np.clip(self._expert.get_action(self._observation), -1.0, 1.0).astype(np.float64)

    def step(self, action: np.ndarray) -> None:
        """Holds a command [4] for 50 ms, or less where the task is done."""
        for _ in range(REPEAT):
            self._observation, reward, _, _, info = self._env.step(np.asarray(action, np.float32))
            self.reward, self.solved = float(reward) / 10, bool(info["success"])
            if self.solved:
                return

    def render(self, size: int) -> np.ndarray:
        """The picture uint8 [size, size, 3]. Raises DisplayError where nothing can be rendered."""
        return render(self._env.model, self._env.data, self._camera, size)


def _expert(task: str):
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[task]()


@functools.cache
def _loaded_world(task: str):
    """The world of the task that is read from XML and meshes, which takes longer than an episode."""
    from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"](seed=0)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True  # every reset is random, by the world's own generator
    return env


def _new_world(task: str):
    """A new world of the task. The environment's own way of copying would read everything again."""
    import mujoco

    loaded = _loaded_world(task)
    env = loaded.__class__.__new__(loaded.__class__)
    env.__dict__.update(loaded.__dict__)
    env.model = copy.copy(loaded.model)
    env.data = mujoco.MjData(env.model)
    return env
