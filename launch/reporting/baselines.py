"""Action predictions that need no model, normalised and laid out like a model's."""

import numpy as np

from data_pipelines.dataset import Dataset
from data_pipelines.robots.normalisation import make_scale, to_relative, to_robot_units
from data_pipelines.robots.slots import scatter
from world_model.batch import Layout


def mean_actions(batch: dict, datasets: tuple[Dataset, ...], layout: Layout) -> np.ndarray:
    """Predicts each dataset's mean training action, whatever is seen: float32 [B, N, action_dim].

    datasets: those that batch["dataset_id"] numbers.
    """
    count, width = batch["actions"].shape[1:]
    steps, means = np.arange(count) % layout.actions_per_block, []
    for dataset in datasets:
        each = np.atleast_2d(dataset.statistics["action"]["mean"])  # one mean, or one a step
        mean = make_scale(dataset.statistics, dataset.embodiment, "action").normalise(
            each[np.minimum(steps, len(each) - 1)])
        means.append(scatter(mean, dataset.embodiment.action_slots, width))
    return np.stack(means)[batch["dataset_id"]]


def repeated_actions(batch: dict, datasets: tuple[Dataset, ...], layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Repeats in every block the last command before it: (float32 [B, N, action_dim], bool [B, N] known).

    The command is repeated in the robot's own units, because the same target is another number in the next block where
    actions are relative to a block's first state. Before the first block the window holds no command.
    """
    repeated, known = np.zeros_like(batch["actions"]), np.zeros(batch["actions"].shape[:2], bool)
    for row in range(len(repeated)):
        dataset = datasets[batch["dataset_id"][row]]
        states = _block_states(batch["state"][row], dataset, layout)
        for block in range(1, layout.num_blocks):
            first, size = block * layout.actions_per_block, layout.actions_per_block
            own, before = slice(first, first + size), slice(first - size, first)
            repeated[row, own] = _repeat(batch["actions"][row, before], states[block - 1], states[block], dataset)
            known[row, own] = batch["action_mask"][row, first - 1].any()
    return repeated, known


def _block_states(state: np.ndarray, dataset: Dataset, layout: Layout) -> np.ndarray:
    """Takes the state at each block's start, in robot units: normalised [S, state_dim] -> [blocks, state dims]."""
    embodiment = dataset.embodiment
    if not embodiment.state:
        return np.zeros((layout.num_blocks, 0))
    first = state[::layout.states_per_block]
    return make_scale(dataset.statistics, embodiment, "state").denormalise(first[:, embodiment.state_slots])


def _repeat(actions: np.ndarray, before: np.ndarray, now: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Repeats the last of the normalised actions [n, action_dim] of the block that began in state `before` as those of
    the block that begins in state `now`, of the same shape."""
    embodiment, statistics = dataset.embodiment, dataset.statistics
    command = to_robot_units(actions, before, embodiment, statistics)[-1]
    relative = np.tile(to_relative(command, now, embodiment), (len(actions), 1))
    scale = make_scale(statistics, embodiment, "action")
    return scatter(scale.normalise(relative), embodiment.action_slots, actions.shape[1])
