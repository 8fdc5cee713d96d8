"""Whether what a model imagines obeys the actions that it is given, measured against the simulator's own replay.

From one starting state several chunks are given: the expert's, the same backwards from where the robot stands, twice as
far, and that of another start. Each is executed in the simulator, and each is imagined from the same picture and the
same noise. Of two chunks whose replays can be told apart, the imagined block should lie nearer, in latents, to the
replay of the chunk that was given than to the other's: right by chance in one half of all such choices, and in exactly
one half where actions do not matter, since the same picture is then compared with both replays.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from launch.serving.engine import Answer, Engine, Request
from launch.simulation import world
from launch.simulation.closed_loop import Run, bootstrap

CHUNKS = ("expert", "backwards", "twice", "swapped")
TELLABLE = 2.0  # root mean square of two replays' difference, grey levels of 255, from which they count as different


@dataclasses.dataclass(frozen=True)
class Start:
    """One starting state: its chunks, what the simulator made of them, and what the model imagined."""

    seed: int
    chunks: np.ndarray  # [chunks, n, action dims], robot units
    replays: np.ndarray  # uint8 [chunks, frames, H, W, 3], canvases
    imagined: np.ndarray  # uint8 [chunks, frames, H, W, 3]
    distance: np.ndarray  # [chunk imagined, chunk replayed], root mean square in latents


def chunks_of(expert: np.ndarray, still: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[chunks, n, action dims] in the order of CHUNKS; expert: [n, action dims]; still: the command that stays; other:
    another start's way from where it stood."""
    way = expert - still
    return np.stack([expert, still - way, still + 2 * way, still + other])


def measure(engine: Engine, instruction: str, fresh: Callable[[Iterable[int]], list[Run]], seeds: range
            ) -> Iterator[Start]:
    """Every start in turn; fresh: makes episodes of seeds. Raises ModelError, and ValueError where the model cannot
    be asked."""
    if not engine.imagines_video:
        raise ValueError("the model's family imagines no video: there is nothing that could obey")
    if engine.last_block == 1:
        raise ValueError("the model's windows are one block long: it never sees what followed, and tells no gap")
    length = engine.robot.horizon
    experts = [expert_chunk(run, length) for run in fresh(seeds)]
    for index, (seed, (expert, still)) in enumerate(zip(seeds, experts, strict=True)):
        there, where = experts[(index + 1) % len(experts)]
        chunks = chunks_of(expert, still, there - where)
        runs = [replay(fresh([seed])[0], chunk) for chunk in chunks]
        replays = [block_frames(engine, run) for run in runs]
        canvases = np.stack([engine.robot.canvas(views) for views in replays])
        answers, distance = imagine(engine, instruction, runs[0], chunks, replays, index)
        yield Start(seed, chunks, canvases, np.stack([engine.decode(a.latents) for a in answers]), distance)


def expert_chunk(run: Run, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(what the scripted controller does first [length, action dims], the command that would have stayed)."""
    still = np.asarray(run.episode.still(), np.float64)
    for _ in range(length):
        run.actions.append(np.asarray(run.episode.expert(), np.float64))
        run.episode.step(run.actions[-1])
    return np.stack(run.actions), still


def replay(run: Run, chunk: np.ndarray) -> Run:
    """The episode after the chunk, looked at before it and after every step."""
    run.look()
    for action in chunk:
        run.episode.step(action)
        run.look()
    return run


def block_frames(engine: Engine, run: Run) -> dict[str, np.ndarray]:
    """The views that a block's end shows to the model: {name: uint8 [frames, H, W, 3]}."""
    stride = engine.robot.layout.frame_stride
    seen = run.frames[1:][stride - 1::stride][:engine.block_frames]
    if len(seen) < engine.block_frames:
        raise ValueError(f"a chunk of {len(run.frames) - 1} steps shows {len(seen)} frames, a block has "
                         f"{engine.block_frames}: the robot's horizon is shorter than a block")
    return {view: np.stack([frame[view] for frame in seen]) for view in seen[0]}


def imagine(engine: Engine, instruction: str, run: Run, chunks: np.ndarray, replays: list[dict], start: int
            ) -> tuple[list[Answer], np.ndarray]:
    """(what is imagined of each chunk, distances [chunk imagined, chunk replayed]): a session is begun for each pair,
    told the chunk, and then shown the replay."""
    nothing, text = np.zeros((0, chunks.shape[-1])), engine.tokenize(instruction)
    distance, answers = np.zeros((len(chunks), len(chunks))), []
    first = {view: frame[None] for view, frame in run.frames[0].items()}
    for given, chunk in enumerate(chunks):
        for shown, views in enumerate(replays):
            asked = Request(0, 1, first, run.states[0], text, (start, 1), chunk)
            answer, = world.answers(engine, [asked])
            seen = asked._replace(block=2, views=views, in_flight=nothing, done=chunk)
            distance[given, shown] = world.answers(engine, [seen])[0].gap
        answers.append(answer)
    return answers, distance


def choices(start: Start) -> list[float]:
    """1 for each choice between two tellable replays that imagination got right, 0 wrong, 1/2 for a tie."""
    pairs = [(k, j) for k in range(len(start.chunks)) for j in range(len(start.chunks))
             if k != j and apart(start.replays[k], start.replays[j]) >= TELLABLE]
    return [0.5 + 0.5 * float(np.sign(start.distance[k, j] - start.distance[k, k])) for k, j in pairs]


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference of two videos, grey levels."""
    return float(np.sqrt(np.square(a.astype(np.float64) - b).mean()))


def accuracy(starts: list[Start]) -> dict:
    """The share of right choices with its 95% interval over starts (bootstrap), as JSON values.

    Raises ValueError where no two replays can be told apart.
    """
    each = [found for start in starts if (found := choices(start))]
    if not each:
        raise ValueError(f"no two replays differ by {TELLABLE} grey levels: these chunks show nothing")
    right, count = np.array([sum(x) for x in each]), np.array([len(x) for x in each])
    share = float(right.sum() / count.sum())
    low, high = (share, share) if np.ptp(right / count) == 0 else bootstrap(
        (right, count), lambda r, n, axis: r.sum(axis) / n.sum(axis), paired=True, vectorized=True)
    return {"accuracy": share, "interval": [low, high], "chance": 0.5,
            "choices": int(count.sum()), "starts": len(each), "starts_without": len(starts) - len(each),
            "obeys": bool(low > 0.5), "sees_actions": any(np.ptp(start.distance, axis=0).any() for start in starts)}
