"""Records a task at a table: an RLDS dataset of its scripted expert's episodes, or of nobody's."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.simulators.recorder import Progress, Recording, parallel, rlds_steps, write_once, write_rlds
from data_pipelines.simulators.tabletop.tasks import LOOKS, TASKS, World, combined_seed, make_world

_FORMAT = 1  # raise it when recordings of the same recipe change
_EPISODE_SEED = 0
WANDER = 6  # steps at most in which the hand drifts off before a recording begins: nobody starts where it is perfect
LINGER = 6  # steps after the task is done, so that the end of a chunk is seen too
ERRAND = (4, 12)  # steps, at least and at most, for which an arm that wanders goes on with the same
ATTEMPTS = 40  # tries at a demonstration: one that fails is not kept


def folder(task: str) -> str:
    """The name of the dataset inside the directory that is written."""
    return f"{TASKS[task].simulator}_rlds"


def write(out: Path, *, task: str, episodes: int, seed: int, image_size: int, look: str = "plain",
          placements: int = 0, noise: float = 0.0, wander: bool = False, workers: int = 2,
          progress: Progress = lambda *_: None) -> int:
    """Records OUT/`folder(task)`. Returns how many attempts it took, 0 where OUT holds the same recipe already.

    placements: the number of ways in which things stand, taken in turn; 0: each episode has its own. noise, wander:
    see `record`. A recording of another recipe is replaced. Raises FileExistsError where OUT holds
    anything else, ValueError for an unknown task or look, and where the expert never does a task.
    """
    for name, value, known in (("task", task, TASKS), ("look", look, LOOKS)):
        if value not in known:
            raise ValueError(f"{name} = {value!r} is unknown; there are {', '.join(known)}")
    recipe = {"format": _FORMAT, "task": task, "episodes": episodes, "seed": seed, "image_size": image_size}
    recipe |= {"look": look} if look != "plain" else {}
    recipe |= {name: value for name, value in (
        ("placements", placements), ("noise", noise), ("wander", wander)) if value}
    robot = get_embodiment(TASKS[task].embodiment)

    attempts: list[int] = []

    def make(out: Path) -> None:
        jobs = [(task, (seed, _EPISODE_SEED, i), image_size, look,
                 (seed, _EPISODE_SEED, i % placements if placements else i), noise, wander) for i in range(episodes)]
        # The software renderer crashes in a process that holds TensorFlow, which writes the dataset.
        made = parallel(episode_steps, jobs, workers, "episodes", progress, own_process=True)
        write_rlds(out / folder(task), TASKS[task].simulator, image_size, (len(robot.state), len(robot.action)),
                   _kept(made, attempts))

    write_once(out, recipe, (folder(task),), make)
    return sum(attempts)


def _kept(made: Iterable[tuple[list[dict], int]], attempts: list[int]) -> Iterator[list[dict]]:
    """Yields the steps of each episode, and notes its attempts."""
    for steps, tried in made:
        attempts.append(tried)
        yield steps


def episode_steps(task: str, seed: tuple[int, ...], image_size: int, look: str, placement: tuple[int, ...],
                  noise: float, wander: bool) -> tuple[int, tuple[list[dict], int]]:
    """Records one episode: (number of steps, (RLDS steps with pictures as PNG, attempts))."""
    recording, attempts = record(task, seed, image_size, look, placement, noise, wander)
    return len(recording.images), (rlds_steps(recording), attempts)


def record(task: str, seed: tuple[int, ...], image_size: int, look: str = "plain",
           placement: tuple[int, ...] | None = None, noise: float = 0.0, wander: bool = False
           ) -> tuple[Recording, int]:
    """Records one demonstration, a function of its arguments: the first of ATTEMPTS in which the task is done, and
    which it was. Raises ValueError where it is done in none. wander: nobody wants anything, and all is kept.

    placement: the seed of where things stand; by default the episode's. noise: its commands are the expert's with a
    noise whose standard deviation is drawn from 0 to this for the whole episode, times the simulator's NOISE; what was
    executed is what is recorded.
    """
    for attempt in range(ATTEMPTS):
        again = (attempt,) if attempt else ()
        found = _attempt(task, (*seed, *again), image_size, look, (*(placement or seed), *again), noise, wander)
        if found.solved or wander:
            return found, attempt + 1
    raise ValueError(f"{task}, seed {seed}: the expert failed {ATTEMPTS} times with noise = {noise}: give it less")


def _attempt(task: str, seed: tuple[int, ...], image_size: int, look: str, placement: tuple[int, ...], noise: float,
             wander: bool) -> Recording:
    """The hand drifts off unrecorded, then the expert does the task, or the arm wanders."""
    rng = np.random.default_rng(seed)
    world = make_world(task, combined_seed(*placement), look)
    drift = np.zeros_like(world.NOISE)
    drift[:3] = rng.uniform(-1, 1, 3)
    for _ in range(rng.integers(WANDER, endpoint=True)):
        world.step(drift)
    deviation = rng.uniform(0, noise) * world.NOISE
    steps, done, commands = [], 0, _commands(world, rng, wander)
    while len(steps) < TASKS[task].steps and (wander or done <= LINGER):
        image, state = world.render(image_size), world.state
        action = np.clip(next(commands) + deviation * rng.normal(size=len(drift)), -1, 1)
        world.step(action)
        steps.append((image, state.astype(np.float32), action.astype(np.float32), np.float32(world.reward)))
        done += int(world.solved)
    images, states, actions, rewards = (np.stack(part) for part in zip(*steps, strict=True))
    return Recording(images, states, actions, rewards, TASKS[task].instruction, done > 0)


def _commands(world: World, rng: np.random.Generator, wander: bool) -> Iterator[np.ndarray]:
    """The expert's commands. An arm that wanders has an errand for a while, any command held or the expert's, and then
    another: an expert's next move can be told from the picture, this arm's from its commands alone."""
    while not wander:
        yield world.expert()
    while True:
        held = rng.uniform(-1, 1, len(world.NOISE)) if rng.random() < 0.5 else None
        for _ in range(rng.integers(*ERRAND, endpoint=True)):
            yield world.expert() if held is None else held
