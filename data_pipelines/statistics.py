"""Normalisation statistics, from state and action arrays alone: video is never decoded.

The result is plain JSON data. Per dataset and embodiment:
    {"dataset", "embodiment", "actions_per_block", "episodes", "skipped": {episode: reason},
     "state" | "action": {"count", "mean", "std", "min", "max", "q01", "q99"} or None without one}
Each value is a list over the embodiment's dimensions, in robot units; actions are relative where declared so.
"""

import hashlib
import json
import pathlib

import numpy as np

from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.normalisation import make_scale
from data_pipelines.samples import Dataset, check_episode, index_windows, relative_actions
from data_pipelines.windows import block_starts
from world_model.batch import Layout


def summarise(values: np.ndarray) -> dict:
    """[count, dims] -> exact statistics per dimension, as lists."""
    values = np.asarray(values, np.float64)
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    stats = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0),
             "q01": q01, "q99": q99}
    return {"count": len(values), **{name: value.tolist() for name, value in stats.items()}}


def compute_statistics(dataset: Dataset, layout: Layout) -> dict:
    """Statistics of dataset.episodes: every step's state once, and every action of every block that some
    window holds, relative to that block's start. Unusable episodes are skipped and named under "skipped".

    Raises ValueError where no episode is usable, or where the statistics cannot normalise (`make_scale`).
    """
    embodiment = dataset.embodiment
    parts = {part: [] for part in ("state", "action") if getattr(embodiment, part)}
    skipped: dict[str, str] = {}
    windows = index_windows(dataset, layout)
    for row, index in enumerate(windows.episodes if parts else ()):
        try:
            episode = dataset.source[int(index)]
            check_episode(episode, embodiment)
        except BadEpisode as error:
            skipped[str(index)] = str(error)
            continue
        if "state" in parts:
            parts["state"].append(episode.state)
        if "action" in parts:
            parts["action"].append(_pooled_actions(episode, windows.starts(row), layout, dataset))
    result = {"dataset": dataset.name, "embodiment": embodiment.name,
              "actions_per_block": layout.actions_per_block, "episodes": len(windows.episodes) - len(skipped),
              "skipped": skipped, "state": None, "action": None}
    for part, values in parts.items():
        pooled = np.concatenate(values) if values else np.zeros((0, 0))
        if not len(pooled):
            raise ValueError(f"statistics of dataset {dataset.name!r}: no {part} in {len(windows.episodes)} "
                             f"episodes; skipped: {dict(list(skipped.items())[:3])}")
        result[part] = summarise(pooled)
        make_scale(result, embodiment, part)  # refuses what cannot be normalised before it is written
    return result


def _pooled_actions(episode: Episode, starts: np.ndarray, layout: Layout, dataset: Dataset) -> np.ndarray:
    """[n, action dims]: windows overlap, so each distinct block is taken once."""
    blocks = np.unique(block_starts(layout, starts[:, None]))
    values, real = relative_actions(episode, blocks, layout.actions_per_block, dataset.embodiment)
    return values[real]


def statistics_hash(statistics: dict) -> str:
    """Of one dataset's statistics, or of {dataset: statistics}; stable over processes and machines."""
    return hashlib.sha256(json.dumps(statistics, sort_keys=True).encode()).hexdigest()[:16]


def save_statistics(statistics: dict[str, dict], path: str) -> None:
    """{dataset: statistics} as JSON."""
    pathlib.Path(path).write_text(json.dumps(statistics, indent=1, sort_keys=True) + "\n")


def load_statistics(path: str) -> dict[str, dict]:
    """Inverse of `save_statistics`."""
    return json.loads(pathlib.Path(path).read_text())
