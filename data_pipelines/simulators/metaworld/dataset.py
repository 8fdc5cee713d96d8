"""Records a Meta-World task: an RLDS dataset of its scripted expert's episodes."""

from pathlib import Path

import numpy as np

from data_pipelines.simulators.metaworld.simulator import LOOKS, TASKS, Simulator
from data_pipelines.simulators.metaworld.task import MAX_STEPS, combined_seed
from data_pipelines.simulators.recorder import Progress, Recording, parallel, rlds_steps, write_once, write_rlds

EPISODES_DIR = "metaworld_rlds"
_FORMAT = 1  # raise it when recordings of the same recipe change
_EPISODE_SEED = 0
WANDER = 6  # steps at most in which the hand drifts off before a recording begins: nobody starts where it is perfect
LINGER = 6  # steps after the task is done, so that the end of a chunk is seen too


def write(out: Path, *, task: str, episodes: int, seed: int, image_size: int, look: str = "plain",
          placements: int = 0, workers: int = 2, progress: Progress = lambda *_: None) -> bool:
    """Records OUT/metaworld_rlds. False where OUT holds the same recipe already.

    placements: the number of ways in which things stand, taken in turn; 0: each episode has its own. A recording of
    another recipe is replaced. Raises FileExistsError where OUT holds anything else, ValueError for an unknown task or
    look.
    """
    for name, value, known in (("task", task, TASKS), ("look", look, LOOKS)):
        if value not in known:
            raise ValueError(f"{name} = {value!r} is unknown; there are {', '.join(known)}")
    recipe = {"format": _FORMAT, "task": task, "episodes": episodes, "seed": seed, "image_size": image_size}
    recipe |= ({"look": look} if look != "plain" else {}) | ({"placements": placements} if placements else {})

    def make(folder: Path) -> None:
        jobs = [(task, (seed, _EPISODE_SEED, i), image_size, look,
                 (seed, _EPISODE_SEED, i % placements if placements else i)) for i in range(episodes)]
        # The software renderer crashes in a process that holds TensorFlow, which writes the dataset.
        write_rlds(folder / EPISODES_DIR, "metaworld", image_size, (4, 4),
                   parallel(episode_steps, jobs, workers, "episodes", progress, apart=True))

    return write_once(out, recipe, (EPISODES_DIR,), make)


def episode_steps(task: str, seed: tuple[int, ...], image_size: int, look: str,
                  placement: tuple[int, ...]) -> tuple[int, list[dict]]:
    """Records one episode: (number of steps, RLDS steps with pictures as PNG)."""
    recording = record(task, seed, image_size, look, placement)
    return len(recording.images), rlds_steps(recording)


def record(task: str, seed: tuple[int, ...], image_size: int, look: str = "plain",
           placement: tuple[int, ...] | None = None) -> Recording:
    """Records one episode, a function of its arguments: the hand wanders off unrecorded, then the expert does the task.

    placement: the seed of where things stand; by default the episode's.
    """
    rng = np.random.default_rng(seed)
    simulator = Simulator(task, combined_seed(*(placement or seed)), look)
    drift = np.append(rng.uniform(-1, 1, 3), 0.0)
    for _ in range(rng.integers(WANDER, endpoint=True)):
        simulator.step(drift)
    steps, done = [], 0
    while len(steps) < MAX_STEPS and done <= LINGER:
        image, state, action = simulator.render(image_size), simulator.state, simulator.expert()
        simulator.step(action)
        steps.append((image, state.astype(np.float32), action.astype(np.float32), np.float32(simulator.reward)))
        done += int(simulator.solved)
    return Recording(*(np.stack(part) for part in zip(*steps, strict=True)), simulator.task.instruction, done > 0)
