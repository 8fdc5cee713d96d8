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
from launch.serving.engine import Engine, ModelError, Request
from launch.simulation import closed_loop
from launch.simulation.candidates import Candidate, NoisyExpert
from launch.simulation.closed_loop import CONFIDENCE, Run

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


def check_world(world: Engine, blocks: int) -> None:
    """Raises ValueError where a model can be no world."""
    layout = world.robot.layout
    if not world.imagines_video:
        raise ValueError("the model's family imagines no video: nothing can be tried in it")
    if world.robot.embodiment.view_layout != "single" or world.robot.augmentation.still.crop < 1:
        raise ValueError("a policy is to see what is imagined, but the robot's cameras are tiled or cropped into one "
                         "picture, of which they cannot be made again")
    if layout.block_frames * layout.frame_stride != world.robot.horizon:
        raise ValueError(f"a block shows {layout.block_frames * layout.frame_stride} steps, the robot's horizon is "
                         f"{world.robot.horizon}: a block without all of its commands cannot be imagined")
    if blocks < 1:
        raise ValueError(f"--blocks={blocks}: at least 1 is needed")


def rank(world: Engine, instruction: str, candidates: list[Candidate], fresh: Fresh, seeds: range, blocks: int,
         say: Callable[[Tried], None]) -> list[Tried]:
    """Every policy, tried from every start. fresh: makes episodes of seeds. Raises ModelError."""
    reading, found = fit_reading(world, fresh, range(seeds.stop, seeds.stop + LESSONS), blocks), []
    for candidate in candidates:
        real, twins = fresh(seeds), fresh(seeds)
        pictures = play(candidate, real, world, blocks)
        imagined = play(candidate, twins, world, blocks, instruction)
        found.append(Tried(candidate.name, closed_loop.scores(real), pictures, imagined,
                           *(float(reading(x).max(axis=1).mean()) for x in (pictures, imagined))))
        say(found[-1])
    return found


def play(candidate: Candidate, runs: list[Run], world: Engine, blocks: int, imagined: str | None = None) -> np.ndarray:
    """The last picture of every block, uint8 [runs, blocks, H, W, 3]. imagined: the instruction, where pictures come
    from the world and not from the simulator."""
    pictures = []
    for run in runs:
        run.look()
    for block in range(blocks):
        _act(candidate, runs, world.robot.horizon, render=imagined is None)
        if imagined is not None:
            _imagine(world, imagined, runs, block)
        pictures.append([world.robot.canvas({view: x[None] for view, x in run.frames[-1].items()})[0] for run in runs])
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


def _imagine(world: Engine, instruction: str, runs: list[Run], block: int) -> None:
    """Appends what the world makes of the last block of commands, a picture for every step: between two, the coming
    one."""
    layout, length, full = world.robot.layout, world.robot.horizon, world.last_block
    number, text = (block if full is None else block % full) + 1, world.tokenize(instruction)

    def request(row: int, run: Run) -> Request:
        seen = run.frames[-1:] if number == 1 else run.frames[-length:][layout.frame_stride - 1::layout.frame_stride]
        views = {view: np.stack([frame[view] for frame in seen]) for view in seen[0]}
        before = np.stack(run.actions[-2 * length:-length]) if number > 1 else None
        return Request(row, number, views, run.states[-1 - length], text, (row, block),
                       np.stack(run.actions[-length:]), done=before)

    for run, answer in zip(runs, world.step([request(row, run) for row, run in enumerate(runs)]), strict=True):
        if isinstance(answer, ModelError):
            raise answer
        view, = run.frames[0]
        run.frames += [{view: frame} for frame in np.repeat(world.decode(answer.latents), layout.frame_stride, axis=0)]


def fit_reading(world: Engine, fresh: Fresh, seeds: range, blocks: int) -> Reading:
    """How the task's measure is read off a picture: a linear function of few pixels, fitted on episodes of the expert
    beside noise."""
    pixels, measure = [], []
    deviation = np.atleast_2d(world.robot.statistics["action"]["std"]).mean(0)
    for noise in NOISES:
        runs = fresh(seeds)
        closed_loop.play(NoisyExpert(noise * deviation), runs, 1)
        for run in runs:
            steps = range(EVERY, min(len(run.frames), blocks * world.robot.horizon + 1), EVERY)
            pixels += [world.robot.canvas({view: x[None] for view, x in run.frames[i].items()})[0] for i in steps]
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
        low, high = scipy.stats.bootstrap(sides, value, paired=True, vectorized=False, confidence_level=CONFIDENCE,
                                          method="percentile", n_resamples=2000, rng=np.random.default_rng(0)
                                          ).confidence_interval
        return {"value": value(*sides), "interval": [float(low), float(high)]}

    return {"spearman": of(scipy.stats.spearmanr), "kendall": of(scipy.stats.kendalltau)}
