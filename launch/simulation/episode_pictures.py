"""Episodes that a model acted in, as videos, strips and Rerun's recordings: what happened, and what was imagined
(extra: sim)."""

from pathlib import Path

import numpy as np

from data_pipelines.storage import files
from launch.reporting import figures
from launch.serving.engine import Engine
from launch.simulation import rerun_log
from launch.simulation.closed_loop import Run

PANEL, GAP = 256, 8  # pixels of a video's panels and between them
STRIP_FRAMES, STRIP_PANEL = 8, 128  # frames of a strip, and the least pixels of each


def extremes(runs: list[Run], count: int) -> list[tuple[str, Run]]:
    """The episodes with most and with least coverage, `count` of each, with names for their files."""
    ranked = sorted(runs, key=lambda run: (-max(run.episode.coverage), len(run.actions)))
    return [(f"{kind}_{run.seed}", run)
            for kind, chosen in (("best", ranked[:count]), ("worst", ranked[len(ranked) - count:])) for run in chosen]


def write_videos(out: Path, runs: list[Run], engine: Engine, count: int) -> None:
    """Writes OUT/NAME.mp4 of `extremes`."""
    from data_pipelines.simulators.recorder import mp4

    for name, run in extremes(runs, count):
        seen, imagined = seen_and_imagined(run, engine)
        video = side_by_side(seen) if imagined is None else side_by_side(seen, imagined)
        files.write_bytes(f"{out}/{name}.mp4", mp4(video, engine.embodiment.rate))


def write_recordings(out: Path, runs: list[Run], engine: Engine, count: int) -> None:
    """Writes OUT/NAME.rrd of `extremes`. Raises ValueError where Rerun is not installed."""
    for name, run in extremes(runs, count):
        rerun_log.write(out / f"{name}.rrd", run, engine.embodiment, seen_and_imagined(run, engine)[1])


def seen_and_imagined(run: Run, engine: Engine) -> tuple[np.ndarray, np.ndarray | None]:
    """Both uint8 [steps, H, W, 3]: canvases, and as imagined when the chunk was chosen (the first frame before); None
    where the family imagines no video."""
    seen = np.stack([engine.robot.canvas({view: frame[None] for view, frame in views.items()})[0]
                     for views in run.frames])
    if not engine.imagines_video:
        return seen, None
    imagined, stride = seen.copy(), engine.robot.layout.frame_stride
    for begin, latents in run.imagined:
        frames = np.repeat(engine.decode(latents), stride, axis=0)
        # Frame i of a block is that of the step (i + 1) stride after its first; between two, the coming one is shown.
        end = min(len(seen), begin + 1 + len(frames))
        imagined[begin + 1:end] = frames[:end - begin - 1]
    return seen, imagined


def side_by_side(*videos: np.ndarray) -> np.ndarray:
    """Videos uint8 [steps, H, W, 3] in panels of at least PANEL pixels, with a white gap between two."""
    panels = [_enlarged(x, PANEL) for x in videos]
    gap = np.full((*panels[0].shape[:2], GAP, 3), 255, np.uint8)
    return np.concatenate([panels[0], *(part for panel in panels[1:] for part in (gap, panel))], axis=2)


def strip(seen: np.ndarray, imagined: np.ndarray | None) -> bytes:
    """PNG: frames evenly spread over an episode, as they came above and, where there are any, as imagined below."""
    steps = np.linspace(0, len(seen) - 1, STRIP_FRAMES).round().astype(int)
    rows = [_enlarged(video[steps], STRIP_PANEL) for video in (seen, imagined) if video is not None]
    return figures.png(figures.grid(rows, GAP))


def _enlarged(frames: np.ndarray, pixels: int) -> np.ndarray:
    """Repeats pixels of [steps, H, W, 3] until each side has so many at least."""
    return frames.repeat(-(-pixels // frames.shape[1]), 1).repeat(-(-pixels // frames.shape[2]), 2)
