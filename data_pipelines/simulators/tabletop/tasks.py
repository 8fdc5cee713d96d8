"""The tasks as data: what is asked of which robot, in which simulator, and how it can be seen.

A task's name is its simulator's; the names of ogbench's are ours, for parts of its one scene.
"""

import dataclasses
import importlib
from typing import NamedTuple, Protocol

import numpy as np


class View(NamedTuple):
    """A camera that a simulator has no name for."""

    lookat: tuple[float, float, float]  # m
    distance: float  # m
    azimuth: float  # degrees
    elevation: float  # degrees


Camera = str | View  # a name in the simulator: Meta-World has topview, corner, corner2, corner3 and corner4


@dataclasses.dataclass(frozen=True)
class Task:
    """One task. Positions are random in every episode."""

    instruction: str
    embodiment: str = "metaworld_20hz"
    camera: Camera = "corner2"
    turned: Camera = "corner"  # the camera of the look "turned"
    simulator: str = "metaworld"  # a module of this folder, with a class World
    steps: int = 60  # after which an episode is over
    scenes: tuple[dict, ...] = ()  # ogbench: what its random scene has to be like, one of these


# Both nearer than the simulators' own: at 64 pixels a cube is hardly seen from there. The second looks from the side.
SAWYER = View((0.0, 0.68, 0.08), 0.85, 270.0, -50.0), View((0.0, 0.68, 0.08), 0.85, 320.0, -40.0)
UR5E = View((0.4, 0.0, 0.08), 0.8, 180.0, -50.0), View((0.4, 0.0, 0.08), 0.8, 140.0, -40.0)


def _grip(instruction: str, cameras: tuple[Camera, Camera] = SAWYER) -> Task:
    return Task(instruction, "metaworld_gripper_20hz", *cameras, steps=80)


def _ogbench(instruction: str, *scenes: dict) -> Task:
    return Task(instruction, "ogbench_20hz", *UR5E, "ogbench", 80, scenes)


TASKS = {
    "button-press-topdown-v3": Task("press the button from above", camera="topview", turned="corner2"),
    "reach-v3": Task("reach the red ball"),
    "drawer-close-v3": Task("close the drawer", camera="topview", turned="corner2"),
    "door-close-v3": Task("close the door", camera="topview", turned="corner2"),
    "handle-press-v3": Task("press the handle down", camera="corner3"),
    "soccer-v3": Task("kick the ball into the goal", "metaworld_20hz", *SAWYER, steps=80),
    "push-v3": _grip("push the puck to the green ball"),
    "pick-place-v3": _grip("lift the puck to the blue ball"),
    "peg-insert-side-v3": _grip("put the peg into the hole"),
    "coffee-pull-v3": _grip("pull the mug away from the machine", SAWYER[::-1]),
    "sweep-into-v3": _grip("sweep the cube into the hole"),
    "ogbench-cube": _ogbench("move the cube to its mark", {"target_task": "cube"}),
    "ogbench-drawer": _ogbench("open the drawer", {"target_task": "drawer", "target_drawer_pos": -0.16,
                                                   "button_0_state": 1}),  # not locked
    "ogbench-window": _ogbench("open the window", {"target_task": "window", "target_window_pos": 0.2,
                                                   "button_1_state": 1}),
    "ogbench-button": _ogbench("press the red button", *(
        {"target_task": "button", "target_button": i, f"button_{i}_state": 0, f"button_{1 - i}_state": 1}
        for i in (0, 1))),
}

# Looks give colours (RGBA) to the simulators' materials, where a world has them, "light", the lamps' strength, and
# "turned", whether the task's other camera looks. Positions and physics are the same in all.
LOOKS: dict[str, dict] = {
    "plain": {},
    "green": {"table_wood": (0.3, 0.6, 0.4, 1), "btn_yellow": (0.2, 0.2, 0.6, 1), "btn_red": (0.9, 0.7, 0.1, 1),
              "grid": (0.3, 1, 0.4, 1), "drawer_body": (0.9, 0.7, 0.1, 1), "window_body": (0.9, 0.7, 0.1, 1),
              "light": 0.15},
    "turned": {"turned": True},
}

# What is recorded of a task for its studies. Of 57 episodes 50 are left where a tenth is held out.
PARTS: dict[str, dict] = {
    "labelled": {"episodes": 57, "noise": 0.1},
    "noisy": {"episodes": 57, "noise": 0.3},
    "video": {"episodes": 200, "noise": 0.1, "seed": 1},
    "green": {"episodes": 200, "noise": 0.1, "seed": 2, "look": "green"},
    "turned": {"episodes": 200, "noise": 0.1, "seed": 3, "look": "turned"},
    "wander": {"episodes": 120, "noise": 0.1, "seed": 5, "wander": True},  # for configs/world.py
}


class World(Protocol):
    """One world of a task under way."""

    reward: float  # after the last command, 0 to 1
    solved: bool
    NOISE: np.ndarray  # standard deviation at noise 1 of each number of a command

    @property
    def state(self) -> np.ndarray:
        """The robot's numbers."""

    def expert(self) -> np.ndarray:
        """The command that the task's scripted controller, which knows where everything stands, would give now."""

    def step(self, action: np.ndarray) -> None:
        """Executes a command for 50 ms."""

    def render(self, size: int) -> np.ndarray:
        """The picture uint8 [size, size, 3]. Raises DisplayError where nothing can be rendered."""


def make_world(task: str, seed: int, look: str = "plain") -> World:
    """A new world; `seed` decides where everything stands. task: a name in TASKS; look: in LOOKS."""
    return importlib.import_module(f"{__package__}.{TASKS[task].simulator}").World(task, seed, look)


def combined_seed(*parts: int) -> int:
    """One seed for the simulator's generator, made of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
