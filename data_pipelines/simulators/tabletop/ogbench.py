"""ogbench: a UR5e arm at a table with a cube, two buttons, a drawer and a window (extra: sim).

A command [5] is a difference, -1 to 1: the hand's position for 5 cm, its angle about the vertical for 0.3 rad, the
gripper from open to closed. A state [6] is the hand's position in m, the cosine and sine of its angle, and how far the
gripper is closed, 0 to 1. A task is a condition on what the package's random scenes ask for (tasks.py).
"""

import copy
import functools
import itertools
import os

import numpy as np

from data_pipelines.simulators.tabletop.rendering import paint, render
from data_pipelines.simulators.tabletop.tasks import LOOKS, TASKS, combined_seed

MARK = (0.1, 0.9, 0.2, 0.6)  # RGBA of where the cube belongs: the package's own is hardly seen, and shown in all tasks


class World:
    """One world of a task. `seed` decides where everything stands; `look` is a name in LOOKS."""

    NOISE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # as the package's noisy data sets have it

    def __init__(self, task: str, seed: int, look: str = "plain"):
        chosen, self._env = TASKS[task], _new_world()
        self._camera = chosen.turned if "turned" in LOOKS[look] else chosen.camera
        self._info = _ask(self._env, seed, chosen.scenes)
        paint(self._env.model, LOOKS[look])
        self._oracle = _oracle(self._env, self._info["privileged/target_task"], seed, self._info)
        self.reward, self.solved = 0.0, False

    @property
    def state(self) -> np.ndarray:
        """The hand's x, y and z in m, cosine and sine of its angle, and how far the gripper is closed: float64 [6]."""
        at, (angle,), closed = (self._info[f"proprio/{name}"] for name in (
            "effector_pos", "effector_yaw", "gripper_opening"))
        return np.array([*at, np.cos(angle), np.sin(angle), *closed])

    def expert(self) -> np.ndarray:
        """The command that the package's oracle, which knows where everything stands, would give now: float64 [5]."""
        return self._oracle.select_action(None, self._info)

    def step(self, action: np.ndarray) -> None:
        """Executes a command [5] for 50 ms."""
        _, _, _, _, self._info = self._env.step(np.clip(action, -1.0, 1.0))
        self.solved = bool(self._info["success"])
        self.reward = float(self.solved)

    def render(self, size: int) -> np.ndarray:
        """The picture uint8 [size, size, 3]. Raises DisplayError where nothing can be rendered."""
        mark = MARK if self._info["privileged/target_task"] == "cube" else (0.0, 0.0, 0.0, 0.0)
        self._env.model.geom_rgba[self._env._cube_target_geom_ids_list[0]] = mark  # the package sets it at every step
        return render(self._env.model, self._env.data, self._camera, size)


@functools.cache
def _loaded_world():
    """The scene that is read from XML and meshes, which takes longer than an episode."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = before or "off"  # dm_control, which reads the scene, would look for a display
    try:
        from ogbench.manipspace.envs.scene_env import SceneEnv
    finally:
        if not before:
            del os.environ["MUJOCO_GL"]
    env = SceneEnv("scene", mode="data_collection")
    env.reset(seed=0)
    return env


def _new_world():
    """A new world of the scene, which shares nothing that changes with another."""
    import mujoco

    loaded = _loaded_world()
    env = loaded.__class__.__new__(loaded.__class__)
    env.__dict__.update({key: value.copy() if isinstance(value, np.ndarray) else value
                         for key, value in loaded.__dict__.items()})
    env._model = copy.copy(loaded._model)
    env._data = mujoco.MjData(env._model)
    return env


def _ask(env, seed: int, scenes: tuple[dict, ...]) -> dict:
    """Resets the world until it is like one of the scenes. Returns what it says of itself then."""
    tried = (env.reset(seed=combined_seed(seed, attempt))[1] for attempt in itertools.count())
    return next(info for info in tried if any(_like(info, scene) for scene in scenes))


def _like(info: dict, scene: dict) -> bool:
    return all(np.all(info[f"privileged/{key}"] == value) for key, value in scene.items())


def _oracle(env, kind: str, seed: int, info: dict):
    """The package's controller for a kind of task. Where it goes afterwards is drawn from numpy's global generator."""
    from ogbench.manipspace.oracles.markov import button_markov, cube_markov, drawer_markov, window_markov

    oracle = {"cube": cube_markov.CubeMarkovOracle, "button": button_markov.ButtonMarkovOracle,
              "drawer": drawer_markov.DrawerMarkovOracle, "window": window_markov.WindowMarkovOracle}[kind](env=env)
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    oracle.reset(None, info)
    np.random.set_state(before)
    return oracle
