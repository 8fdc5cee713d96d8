"""Records PushT episodes in the simulator, each of them a function of its seed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipelines.simulators.pusht.controller import PushController, keeps_clear
from data_pipelines.simulators.pusht.simulator import GOAL, Palette, Simulator
from data_pipelines.simulators.recorder import Recording

MAX_STEPS = 140  # 14 seconds
SHORT_SHARE, SHORT_STEPS = 0.03, (6, 16)  # a few recordings stop at once: shorter than a training window
SOLVED = 0.85  # coverage of the goal at which an episode ends
INSTRUCTIONS = ("push the T onto the green target", "move the T block to the goal", "slide the T into place")

COLOURS = {  # clips have these; white, the robot episodes' background, is not among them
    "red": (214, 40, 40), "orange": (247, 140, 20), "yellow": (250, 220, 60), "green": (30, 130, 60),
    "teal": (20, 150, 160), "navy": (20, 40, 110), "purple": (120, 50, 170), "pink": (245, 160, 200),
    "brown": (110, 65, 30), "cream": (250, 235, 200), "black": (20, 20, 20), "sky": (135, 200, 250)}


class Task(NamedTuple):
    """Where the block of an episode begins, and how far executed commands stray from those that are recorded.

    A policy that clones commands which are always obeyed never sees how to come back to the path; recorded beside
    noise, the controller shows it (DART, Laskey et al. 2017, arXiv 1703.09327, section 4).
    """

    start: Callable[[np.random.Generator], np.ndarray]  # block's pose [3]
    stray: float  # standard deviation, pixels


def anywhere(rng: np.random.Generator) -> np.ndarray:
    """Samples any pose of the block: several pushes and turns from the goal."""
    return np.append(rng.uniform(130, 380, 2), rng.uniform(-np.pi, np.pi))


def in_line(rng: np.random.Generator) -> np.ndarray:
    """Samples a pose above the goal and nearly in line with it: one long push away."""
    turn = GOAL[2]
    along, across = np.array([-np.sin(turn), np.cos(turn)]), np.array([np.cos(turn), np.sin(turn)])
    place = GOAL[:2] - rng.uniform(50, 140) * along + rng.uniform(-8, 8) * across
    return np.append(place, turn + rng.uniform(-0.05, 0.05))


TASKS = {"place": Task(anywhere, 0.0), "slide": Task(in_line, 10.0)}


def record(seed: tuple[int, ...], image_size: int, palette: Palette, task: str = "place") -> Recording:
    """Records one episode, a function of its arguments: random poses, then the controller until the block is at
    the goal."""
    rng, disturbance = np.random.default_rng(seed), np.random.default_rng((*seed, 1))
    simulator = Simulator(*start_poses(rng, task), palette)
    limit = rng.integers(*SHORT_STEPS, endpoint=True) if rng.random() < SHORT_SHARE else MAX_STEPS
    controller, steps = PushController(simulator.goal), []
    for _ in range(limit):
        image, agent = simulator.render(image_size), simulator.agent
        action = controller.act(agent, simulator.block).astype(np.float32)
        coverage = simulator.step(action + disturbance.normal(0, TASKS[task].stray, 2))
        steps.append((image, agent, action, coverage))
        if coverage > SOLVED:
            break
    images, states, actions, rewards = (np.stack(part) for part in zip(*steps, strict=True))
    return Recording(images, states.astype(np.float32), actions, rewards.astype(np.float32),
                     INSTRUCTIONS[rng.integers(len(INSTRUCTIONS))], bool(rewards[-1] > SOLVED))


def start_poses(rng: np.random.Generator, task: str = "place") -> tuple[np.ndarray, np.ndarray]:
    """A random position of the agent [2] and pose of the block [3] of a task that do not touch."""
    block = TASKS[task].start(rng)
    while True:
        agent = rng.uniform(50, 462, 2)
        if keeps_clear(agent, block):
            return agent, block


def random_palette(rng: np.random.Generator) -> tuple[Palette, str]:
    """Random colours that tell everything apart, none of them the robot episodes', and a caption that names them."""
    while True:
        names = rng.choice(sorted(COLOURS), 4, replace=False).tolist()
        background, goal, block, agent = (COLOURS[name] for name in names)
        colours = np.array([COLOURS[name] for name in names], float)
        gaps = np.linalg.norm(colours[:, None] - colours, axis=-1)[np.triu_indices(4, 1)]
        # A small disc lives on its brightness: video files keep colour at half the resolution.
        if gaps.min() > 120 and min(abs(_brightness(background) - _brightness(c)) for c in (block, agent)) > 60:
            red, green, blue = (int(c * 0.8) for c in background)
            table, _, tee, disc = (f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names)
            caption = f"{disc} disc pushes {tee} T on {table} table"
            return Palette(background, goal, block, agent, (red, green, blue)), caption


def _brightness(colour: tuple[int, int, int]) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))
