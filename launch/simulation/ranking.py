"""Policies tried inside a model of the world: whether what it imagines ranks them as the simulator does.

From the first picture of a simulated episode on, a policy acts on pictures that the model imagines of its commands,
block after block (forward dynamics). A twin in the simulator executes the same commands. It gives the robot's own
state, which no video model predicts, and is what scripted policies look at, which see no pictures.

The score is read off pictures: a ridge regression from a block's last one to the task's measure, fitted on other
episodes in the simulator; a try counts by its best block, as an episode does by its best step. Read off the simulator's
true pictures, it says what imagination could reach at most. Noise belongs to the start and the block, so that a model
that ignores commands has one score for all policies, and ranks none above another.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.stats

from data_pipelines.robots.views import resize
from launch.serving.engine import Engine
from launch.simulation import closed_loop, world
from launch.simulation.candidates import Candidate, NoisyExpert
from launch.simulation.closed_loop import Run

SIDE = 16  # pixels of a picture's side as it is read
DAMPING = 1.0  # of the regression from pixels in [0, 1]
LESSONS, NOISES, EVERY = 8, (0.0, 0.5, 1.0, 2.0, 4.0), 4  # episodes of each noise, of which every fourth step is read

Reading = Callable[[np.ndarray], np.ndarray]  # uint8 [..., H, W, 3] -> [...]
Fresh = Callable[[range], list[Run]]


@dataclasses.dataclass(frozen=True)
class Tried:
    """One policy."""

    name: str
    simulated: dict  # closed_loop.scores
    pictures: np.ndarray  # uint8 [starts, blocks, H, W, 3]: the last of each block, in the simulator
    imagined: np.ndarray  # the same, inside the model
    read: float  # the score of `pictures`
    score: float  # the score of `imagined`


def rank(model: Engine, instruction: str, candidates: list[Candidate], fresh: Fresh, seeds: range, blocks: int,
         say: Callable[[Tried], None]) -> list[Tried]:
    """Every policy, tried from every start. fresh: makes episodes of seeds. Raises ModelError."""
    reading, found = fit_reading(model, fresh, range(seeds.stop, seeds.stop + LESSONS), blocks), []
    for candidate in candidates:
        real, twins = fresh(seeds), fresh(seeds)
        pictures = play(candidate, real, model, blocks)
        imagined = play(candidate, twins, model, blocks, instruction)
        found.append(Tried(candidate.name, closed_loop.scores(real), pictures, imagined,
                           *(float(reading(x).max(axis=1).mean()) for x in (pictures, imagined))))
        say(found[-1])
    return found


def play(candidate: Candidate, runs: list[Run], model: Engine, blocks: int, imagined: str | None = None) -> np.ndarray:
    """The last picture of every block, uint8 [runs, blocks, H, W, 3]. imagined: the instruction, where pictures come
    from the model and not from the simulator."""
    pictures = []
    for run in runs:
        run.look()
    for block in range(blocks):
        _act(candidate, runs, model.robot.horizon, render=imagined is None)
        if imagined is not None:
            _imagine(model, imagined, runs, block)
        pictures.append([world.picture(model, run) for run in runs])
    return np.stack(pictures, axis=1)


def _act(candidate: Candidate, runs: list[Run], steps: int, render: bool) -> None:
    """Every episode goes on so many steps; once it is over, commands change nothing."""
    for _ in range(0, steps, candidate.execute):
        for run, chunk in zip(runs, candidate.policy(runs), strict=True):
            for action in chunk[:candidate.execute]:
                if not run.episode.over:
                    run.episode.step(action)
                run.actions.append(np.asarray(action, np.float64))
                run.look(render)


def _imagine(model: Engine, instruction: str, runs: list[Run], block: int) -> None:
    """Appends what the model makes of the last block of commands."""
    length, text = model.robot.horizon, model.tokenize(instruction)
    requests = [world.request(model, run, row, block, text, (row, block), np.stack(run.actions[-length:]))
                for row, run in enumerate(runs)]
    for run, answer in zip(runs, world.answers(model, requests), strict=True):
        world.remember(model, run, answer.latents)


def fit_reading(model: Engine, fresh: Fresh, seeds: range, blocks: int) -> Reading:
    """How the task's measure is read off a picture: a linear function of few pixels, fitted on episodes of the expert
    beside noise."""
    pixels, measure = [], []
    for noise in NOISES:
        runs = fresh(seeds)
        closed_loop.play(NoisyExpert(model.robot.statistics, noise), runs, 1)
        for run in runs:
            steps = range(EVERY, min(len(run.frames), blocks * model.robot.horizon + 1), EVERY)
            pixels += [world.picture(model, run, i) for i in steps]
            measure += [run.episode.coverage[i - 1] for i in steps]
    x, y = _features(np.stack(pixels)), np.array(measure)
    centre, middle = x.mean(axis=0), y.mean()
    x, y = x - centre, y - middle
    weights = np.linalg.solve(x.T @ x + DAMPING * np.eye(x.shape[1]), x.T @ y)
    return lambda pictures: (_features(pictures) - centre) @ weights + middle


def _features(pictures: np.ndarray) -> np.ndarray:
    """float64 [..., pixels] of uint8 [..., H, W, 3]."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    return resize(flat, SIDE, SIDE).reshape(*pictures.shape[:-3], -1) / 255.0


def correlations(scores: list[float], truth: list[float]) -> dict:
    """Rank correlations with 95% intervals (bootstrap over policies); 0 where either side knows no order."""
    def of(statistic):
        def value(a, b):
            return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(statistic(a, b).statistic)

        sides = np.array(scores), np.array(truth)
        return {"value": value(*sides), "interval": closed_loop.bootstrap(sides, value, paired=True, vectorized=False,
                                                                          n_resamples=2000)}

    return {"spearman": of(scipy.stats.spearmanr), "kendall": of(scipy.stats.kendalltau)}
