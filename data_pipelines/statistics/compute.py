"""Counts normalisation statistics, from state and action columns alone: video is never opened.

data_pipelines/statistics/stored.py says what comes out. Actions are relative where they are declared so.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from safetensors import safe_open

from data_pipelines.dataset import Dataset, index_windows
from data_pipelines.episode import BadEpisode, Episode, check_limit
from data_pipelines.robots.embodiment import NORMALISATIONS, Embodiment
from data_pipelines.robots.normalisation import make_scale
from data_pipelines.samples import check_episode, check_finite, checked_actions
from data_pipelines.statistics.summary import Summary
from data_pipelines.storage import files
from data_pipelines.windows import WindowIndex, block_starts
from world_model import kinds
from world_model.batch import Layout

SCOPES = ("dataset", "embodiment")
_ABOUT = kinds.fields({"episodes": kinds.whole(), "skipped": kinds.map_of(kinds.text),  # metadata of a share
                       "parts": kinds.list_of(kinds.text)}, required=("episodes", "skipped", "parts"))
_SHARES = 16  # an episode's share does not depend on the number of threads, and so neither does any number


@dataclasses.dataclass
class Gathered:
    """The summaries of some episodes of one robot."""

    embodiment: Embodiment
    episodes: int = 0
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    parts: dict[str, Summary] = dataclasses.field(default_factory=lambda: collections.defaultdict(Summary))

    def merge(self, other: "Gathered") -> "Gathered":
        """Adds the other's episodes; returns this one."""
        self.episodes += other.episodes
        self.skipped |= other.skipped
        for part, summary in other.parts.items():
            self.parts[part].merge(summary)
        return self


def compute_statistics(datasets: Dataset | Sequence[Dataset], layout: Layout, parts: str = "",
                       max_bad_fraction: float = 0.001) -> dict:
    """The statistics of the chosen episodes of one dataset, or of several datasets of one robot.

    They count the state of every step of every stretch that windows lie in, and every action of every block that some
    window holds, relative to that block's start. Unusable episodes are skipped and named under "skipped". parts: a
    folder where summaries are kept, so that an interrupted call goes on; empty: nowhere. max_bad_fraction: share of a
    dataset's episodes that may be unusable.

    Raises ValueError where more are, with the list, where none is usable, or where the statistics cannot normalise
    (`make_scale`).
    """
    datasets = [datasets] if isinstance(datasets, Dataset) else list(datasets)
    embodiment, name = datasets[0].embodiment, " + ".join(d.name for d in datasets)
    total = Gathered(embodiment)
    for dataset in datasets:
        total.merge(gather(dataset, layout, parts, max_bad_fraction))
    result = {"dataset": name, "embodiment": embodiment.name, "actions_per_block": layout.actions_per_block,
              "episodes": total.episodes, "skipped": total.skipped, "state": None, "action": None,
              "absolute_action": None}
    for part in (part for part in ("state", "action") if getattr(embodiment, part)):
        counted = [total.parts[summary] for summary in _summaries(embodiment, part, layout)]
        if not counted[0].count:
            raise ValueError(f"statistics of dataset {name!r}: no {part} in {len(total.skipped)} episodes; skipped: "
                             f"{dict(list(total.skipped.items())[:3])}")
        if len(reached := [summary for summary in counted if summary.count]) < len(counted):
            raise ValueError(f"statistics of dataset {name!r}: no episode has more than {len(reached)} actions, and "
                             f"statistics of {len(counted)} steps are asked for: embodiment {embodiment.name!r} should "
                             f"declare horizon={len(reached)}")
        found = [summary.result(NORMALISATIONS[embodiment.normalisation].quantiles) for summary in counted]
        result[part] = _by_step(found) if part == "action" and embodiment.per_step else found[0]
        make_scale(result, embodiment, part)  # refuses what cannot be normalised before it is written
    if "absolute_action" in total.parts:
        result["absolute_action"] = total.parts["absolute_action"].result()
    return result


def _summaries(embodiment: Embodiment, part: str, layout: Layout) -> list[str]:
    """The names of the summaries that the statistics of a part are made of: one, or one for each step of a block."""
    if part != "action" or not embodiment.per_step:
        return [part]
    return [f"action.{step}" for step in range(embodiment.learned_steps(layout.actions_per_block))]


def _by_step(found: list[dict]) -> dict:
    """The statistics of all steps of a block as one part's."""
    return {"count": sum(each["count"] for each in found), "rank_error": max(each["rank_error"] for each in found),
            **{key: [each[key] for each in found] for key, value in found[0].items() if isinstance(value, list)}}


def mixture_statistics(datasets: Sequence[Dataset], layout: Layout, per: str, parts: str = "",
                       max_bad_fraction: float = 0.001) -> dict[str, dict]:
    """{dataset: statistics}; per "embodiment", the datasets of one robot share those of all its episodes. parts and
    max_bad_fraction: see `compute_statistics`."""
    if per not in SCOPES:
        raise ValueError(f"data.statistics_per = {per!r}: expected one of {SCOPES}")
    groups = collections.defaultdict(list)
    for dataset in datasets:
        groups[dataset.name if per == "dataset" else dataset.embodiment.name].append(dataset)
    found = {}
    for group in groups.values():
        found |= dict.fromkeys([d.name for d in group], compute_statistics(group, layout, parts, max_bad_fraction))
    return found


def gather(dataset: Dataset, layout: Layout, parts: str = "", max_bad_fraction: float = 0.001) -> Gathered:
    """The summaries of one dataset's episodes, which are read in threads. See `compute_statistics`."""
    total, windows = Gathered(dataset.embodiment), index_windows(dataset, layout)
    if not (dataset.embodiment.state or dataset.embodiment.action):
        return dataclasses.replace(total, episodes=len(windows.episodes))
    shares = np.array_split(windows.episodes, min(_SHARES, len(windows.episodes)))
    count = functools.partial(_gather_share, dataset, layout, windows)
    if parts:
        count = functools.partial(_cached_share, pathlib.Path(parts), dataset, layout, windows)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for part in threads.map(count, shares):
            total.merge(part)
    lines = (f"{episode}: {reason}" for episode, reason in total.skipped.items())
    check_limit(len(total.skipped), len(windows.episodes), max_bad_fraction, "episodes", lines)
    return total


def _cached_share(folder: pathlib.Path, dataset: Dataset, layout: Layout, windows: WindowIndex,
                episodes: np.ndarray) -> Gathered:
    """`_gather_share`, read back from the folder where it was counted before, and kept there otherwise."""
    digest = hashlib.sha256(repr((dataset.name, dataset.embodiment, layout, windows.stride)).encode())
    for column in (windows.episode, windows.first, windows.last, windows.stop, episodes):
        digest.update(np.ascontiguousarray(column, "<i8").tobytes())
    file = folder / f"{digest.hexdigest()[:32]}.safetensors"
    if file.is_file():
        found = _read_share(file, dataset.embodiment)
        unread = np.array([int(name.rpartition("/")[2]) for name in found.skipped], np.int64)
        if not _gather_share(dataset, layout, windows, unread).episodes:  # none was put right since
            return found
    found = _gather_share(dataset, layout, windows, episodes)
    folder.mkdir(parents=True, exist_ok=True)
    _write_share(file, found)
    return found


def _read_share(file: pathlib.Path, embodiment: Embodiment) -> Gathered:
    with safe_open(file, "np") as opened:
        about = kinds.parse(opened.metadata()["about"], _ABOUT, f"{file}: about")
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    found = Gathered(embodiment, about["episodes"], about["skipped"])
    for part in about["parts"]:
        prefix = f"{part}/"
        found.parts[part] = Summary.restored({name.removeprefix(prefix): value for name, value in arrays.items()
                                              if name.startswith(prefix)})
    return found


def _write_share(file: pathlib.Path, share: Gathered) -> None:
    arrays = {f"{part}/{name}": value for part, summary in share.parts.items()
              for name, value in summary.arrays().items()}
    about = {"episodes": share.episodes, "skipped": share.skipped, "parts": sorted(share.parts)}
    files.write_tensors(str(file), arrays, {"about": json.dumps(about)})


def _gather_share(dataset: Dataset, layout: Layout, windows: WindowIndex, episodes: np.ndarray) -> Gathered:
    """The summaries of the states and actions that the windows of some episodes hold."""
    found, embodiment = Gathered(dataset.embodiment), dataset.embodiment
    for index in episodes.tolist():
        try:
            parts = _parts_of(dataset.source[index], embodiment, layout, windows)
        except BadEpisode as error:
            found.skipped[f"{dataset.name}/{index}"] = str(error)
            continue
        found.episodes += 1
        for name, values in parts.items():
            found.parts[name].update(values)
    return found


def _parts_of(episode: Episode, embodiment: Embodiment, layout: Layout, windows: WindowIndex) -> dict[str, np.ndarray]:
    """{part: values [n, dims]} of what an episode's windows hold. Raises BadEpisode where one of them is no number."""
    check_episode(episode, embodiment)
    rows, parts = windows.rows(episode.index), {}
    held = np.concatenate([np.arange(windows.first[row], windows.stop[row]) for row in rows])
    if embodiment.state:
        parts["state"] = episode.state[held]
        check_finite(episode, embodiment, "state", parts["state"], held)
    if embodiment.action:  # windows overlap, so each distinct block is taken once
        starts = np.concatenate([windows.starts(row) for row in rows])
        blocks = np.unique(block_starts(layout, starts[:, None]))
        values, real = checked_actions(episode, blocks, layout.actions_per_block, embodiment)
        if embodiment.per_step:
            parts |= {name: values[real[:, step], step]
                      for step, name in enumerate(_summaries(embodiment, "action", layout))}
        else:
            parts["action"] = values[real]
    if embodiment.per_step or any(dim.relative_to for dim in embodiment.action):
        held = held[np.isfinite(episode.action[held]).all(1)]  # for people: some may belong to no window's action
        parts["absolute_action"] = episode.action[held]
    return parts
