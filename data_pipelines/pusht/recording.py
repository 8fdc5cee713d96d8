"""Simulated PushT episodes: what a step holds, and how a seed decides everything."""

from typing import NamedTuple

import numpy as np

from data_pipelines.pusht.controller import PushController
from data_pipelines.pusht.simulator import Palette, Simulator

MAX_STEPS = 110  # 11 seconds
SOLVED = 0.9  # coverage of the goal at which an episode ends
INSTRUCTIONS = ("push the T onto the green target", "move the T block to the goal", "slide the T into place")


class Recording(NamedTuple):
    """One episode. Step t: what is seen, then the action applied to it."""

    images: np.ndarray  # uint8 [steps, size, size, 3]
    states: np.ndarray  # float32 [steps, 2], position of the agent, pixels of the world
    actions: np.ndarray  # float32 [steps, 2], target position, pixels of the world
    rewards: np.ndarray  # float32 [steps], coverage of the goal after the step
    instruction: str


def record(seed: tuple[int, ...], image_size: int, palette: Palette) -> Recording:
    """One episode, a function of its arguments: random poses, then the controller until the block is at the goal."""
    rng = np.random.default_rng(seed)
    simulator = Simulator(rng.uniform(60, 450, 2), np.append(rng.uniform(120, 390, 2), rng.uniform(-np.pi, np.pi)),
                          palette)
    controller, steps = PushController(simulator.goal), []
    for _ in range(MAX_STEPS):
        image, agent = simulator.render(image_size), simulator.agent
        action = controller.act(agent, simulator.block).astype(np.float32)
        steps.append((image, agent, action, simulator.step(action)))
        if steps[-1][-1] > SOLVED:
            break
    images, states, actions, rewards = (np.stack(part) for part in zip(*steps, strict=True))
    return Recording(images, states.astype(np.float32), actions, rewards.astype(np.float32),
                     INSTRUCTIONS[rng.integers(len(INSTRUCTIONS))])


def random_palette(rng: np.random.Generator) -> Palette:
    """Other colours of block and background than the robot data's; the block stays visible on the background."""
    while True:
        background, block = rng.integers(0, 256, (2, 3))
        if np.abs(background - block).sum() > 200 and background.min() < 225:
            return Palette(background=tuple(map(int, background)), block=tuple(map(int, block)))
