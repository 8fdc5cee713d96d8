"""Records PushT: an RLDS dataset of simulated episodes, and action-free mp4 clips in other colours."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_pipelines.simulators.pusht.recording import random_palette, record
from data_pipelines.simulators.pusht.simulator import RATE, Palette
from data_pipelines.simulators.recorder import Progress, mp4, parallel, rlds_steps, write_once, write_rlds

EPISODES_DIR, CLIPS_DIR = "pusht_rlds", "pusht_clips"
_FORMAT = 3  # raise it when recordings of the same recipe change
_EPISODE_SEED, _CLIP_SEED = 0, 1  # clips come from other seeds than episodes


def write(out: Path, *, episodes: int, clips: int, seed: int, image_size: int, task: str = "place",
          workers: int = 2, progress: Progress = lambda *_: None) -> bool:
    """Records OUT/pusht_rlds and OUT/pusht_clips of a task of recording.TASKS. False where OUT holds the same recipe
    already.

    A recording of another recipe is replaced. Raises FileExistsError where OUT holds anything else, ValueError where
    image_size is odd (H.264 halves the colours).
    """
    if image_size % 2:
        raise ValueError(f"image_size = {image_size}: video files need an even number of pixels")
    recipe = {"format": _FORMAT, "episodes": episodes, "clips": clips, "seed": seed, "image_size": image_size,
              "task": task}

    def make(folder: Path) -> None:
        jobs = [((seed, _EPISODE_SEED, i), image_size, task) for i in range(episodes)]
        write_rlds(folder / EPISODES_DIR, "pusht", image_size, (2, 2),
                   parallel(episode_steps, jobs, workers, "episodes", progress))
        jobs = [((seed, _CLIP_SEED, i), image_size, task) for i in range(clips)]
        _write_clips(folder / CLIPS_DIR, parallel(_clip, jobs, workers, "clips", progress))

    return write_once(out, recipe, (EPISODES_DIR, CLIPS_DIR), make)


def episode_steps(seed: tuple[int, ...], image_size: int, task: str) -> tuple[int, list[dict]]:
    """Records one episode: (number of steps, RLDS steps with pictures as PNG)."""
    recording = record(seed, image_size, Palette(), task)
    return len(recording.images), rlds_steps(recording)


def _clip(seed: tuple[int, ...], image_size: int, task: str) -> tuple[int, tuple[bytes, str]]:
    """Records one clip: (number of frames, (mp4, caption))."""
    palette, caption = random_palette(np.random.default_rng((*seed, 0)))
    images = record(seed, image_size, palette, task).images
    return len(images), (mp4(images, RATE), caption)


def _write_clips(out: Path, clips: Iterable[tuple[bytes, str]]) -> None:
    out.mkdir()
    captions = []
    for i, (file, caption) in enumerate(clips):
        (out / f"clip_{i:04d}.mp4").write_bytes(file)
        captions.append(json.dumps({"file": f"clip_{i:04d}.mp4", "caption": caption}))
    (out / "captions.jsonl").write_text("".join(line + "\n" for line in captions))
