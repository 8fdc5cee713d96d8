"""Normalisation statistics, from state and action columns alone: video is never opened.

The result is plain JSON data. Per dataset, or per robot where several datasets share one:
    {"dataset", "embodiment", "actions_per_block", "episodes", "skipped": {"dataset/episode": reason},
     "state" | "action" | "absolute_action": `Summary.result`, or None without one}
Each value is a list over the embodiment's dimensions, in robot units. Actions are relative where declared so;
absolute_action is there for people, where some are.
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
from safetensors.numpy import save_file

from data_pipelines.episode import BadEpisode, Episode, check_limit
from data_pipelines.robots.embodiment import Embodiment
from data_pipelines.robots.embodiments import name_in_files
from data_pipelines.robots.normalisation import make_scale
from data_pipelines.samples import Dataset, check_episode, index_windows, relative_actions
from data_pipelines.storage import files
from data_pipelines.summary import Summary
from data_pipelines.windows import WindowIndex, block_starts
from world_model.batch import Layout

SCOPES = ("dataset", "embodiment")
_SHARES = 16  # an episode's share does not depend on the number of threads, and so neither does any number


@dataclasses.dataclass
class Gathered:
    """What was counted in some episodes of one robot."""

    embodiment: Embodiment
    episodes: int = 0
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    parts: dict[str, Summary] = dataclasses.field(default_factory=lambda: collections.defaultdict(Summary))

    def merge(self, other: "Gathered") -> "Gathered":
        """This, with the other's episodes."""
        self.episodes += other.episodes
        self.skipped |= other.skipped
        for part, summary in other.parts.items():
            self.parts[part].merge(summary)
        return self


def compute_statistics(datasets: Dataset | Sequence[Dataset], layout: Layout, parts: str = "",
                       max_bad_fraction: float = 0.001) -> dict:
    """Statistics of the chosen episodes of one dataset, or of several of one robot: the state of every step of every
    stretch that windows lie in, and every action of every block that some window holds, relative to that block's start.
    Unusable episodes are skipped and named under "skipped". parts: a folder where what is counted is kept, so that an
    interrupted call goes on; empty: nowhere. max_bad_fraction: share of a dataset's episodes that may be unusable.

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
        if not total.parts[part].count:
            raise ValueError(f"statistics of dataset {name!r}: no {part} in {len(total.skipped)} episodes; skipped: "
                             f"{dict(list(total.skipped.items())[:3])}")
        result[part] = total.parts[part].result()
        make_scale(result, embodiment, part)  # refuses what cannot be normalised before it is written
    if "absolute_action" in total.parts:
        result["absolute_action"] = total.parts["absolute_action"].result()
    return result


def mixture_statistics(datasets: Sequence[Dataset], layout: Layout, per: str, parts: str = "",
                       max_bad_fraction: float = 0.001) -> dict[str, dict]:
    """{dataset: statistics}; per "embodiment", datasets of one robot share those of all its episodes. parts and
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


MEAN_APART, OUTSIDE = 0.5, 1e-3  # of the published std and range: the published count held-out recordings too


def against_published(dataset: Dataset, statistics: dict) -> list[str]:
    """Sentences about dimensions in which what was counted is not what the dataset's own meta/stats.json says: they are
    of another version, or partial. Empty where they agree or there are none."""
    published, said = getattr(dataset.source, "published", None), []
    for part, dims in (("state", dataset.embodiment.state), ("action", dataset.embodiment.action)):
        theirs = published and dims and published(part)
        ours = statistics["absolute_action"] if part == "action" and statistics["absolute_action"] else statistics[part]
        if not theirs:
            continue
        if len(theirs["mean"]) != len(dims):
            raise ValueError(f"dataset {dataset.name!r}: meta/stats.json has {len(theirs['mean'])} dimensions of "
                             f"{part}, {dataset.embodiment.name} {len(dims)}")
        room = OUTSIDE * np.maximum(theirs["max"] - theirs["min"], 1e-6)
        for i, dim in enumerate(dims):
            apart = abs(ours["mean"][i] - theirs["mean"][i]) / max(theirs["std"][i], 1e-6)
            if ours["min"][i] < theirs["min"][i] - room[i] or ours["max"][i] > theirs["max"][i] + room[i]:
                said.append(f"{part} {dim.name}: {ours['min'][i]:.4g} to {ours['max'][i]:.4g}, meta/stats.json says "
                            f"{theirs['min'][i]:.4g} to {theirs['max'][i]:.4g}")
            elif apart > MEAN_APART:
                said.append(f"{part} {dim.name}: mean {ours['mean'][i]:.4g}, meta/stats.json says "
                            f"{theirs['mean'][i]:.4g} +- {theirs['std'][i]:.4g}")
    return said


def gather(dataset: Dataset, layout: Layout, parts: str = "", max_bad_fraction: float = 0.001) -> Gathered:
    """What one dataset's episodes count, read in threads. See `compute_statistics`."""
    total, windows = Gathered(dataset.embodiment), index_windows(dataset, layout)
    if not (dataset.embodiment.state or dataset.embodiment.action):
        return dataclasses.replace(total, episodes=len(windows.episodes))
    shares = np.array_split(windows.episodes, min(_SHARES, len(windows.episodes)))
    count = lambda share: _gather_share(dataset, layout, windows, share)
    if parts:
        count = functools.partial(_kept_share, pathlib.Path(parts), dataset, layout, windows)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for part in threads.map(count, shares):
            total.merge(part)
    lines = (f"{episode}: {reason}" for episode, reason in total.skipped.items())
    check_limit(len(total.skipped), len(windows.episodes), max_bad_fraction, "episodes", lines)
    return total


def _kept_share(folder: pathlib.Path, dataset: Dataset, layout: Layout, windows: WindowIndex,
                episodes: np.ndarray) -> Gathered:
    """`_gather_share`, read back where it was counted before."""
    digest = hashlib.sha256(repr((dataset.name, dataset.embodiment, layout, windows.stride)).encode())
    for column in (windows.episode, windows.first, windows.last, windows.stop, episodes):
        digest.update(np.ascontiguousarray(column, "<i8").tobytes())
    file = folder / f"{digest.hexdigest()[:32]}.safetensors"
    if file.is_file():
        with safe_open(file, "np") as opened:
            about = json.loads(opened.metadata()["about"])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        prefixed = lambda part: {name.removeprefix(f"{part}/"): value for name, value in arrays.items()
                                 if name.startswith(f"{part}/")}
        found = Gathered(dataset.embodiment, about["episodes"], about["skipped"])
        found.parts.update({part: Summary.restored(prefixed(part)) for part in about["parts"]})
        return found
    found = _gather_share(dataset, layout, windows, episodes)
    arrays = {f"{part}/{name}": np.ascontiguousarray(value) for part, summary in found.parts.items()
              for name, value in summary.arrays().items()}
    folder.mkdir(parents=True, exist_ok=True)
    about = {"episodes": found.episodes, "skipped": found.skipped, "parts": sorted(found.parts)}
    partial = file.with_suffix(f".partial-{os.getpid()}")
    save_file(arrays, partial, {"about": json.dumps(about)})
    partial.replace(file)
    return found


def _gather_share(dataset: Dataset, layout: Layout, windows: WindowIndex, episodes: np.ndarray) -> Gathered:
    found, embodiment = Gathered(dataset.embodiment), dataset.embodiment
    for index in episodes.tolist():
        try:
            episode = dataset.source[index]
            check_episode(episode, embodiment)
        except BadEpisode as error:
            found.skipped[f"{dataset.name}/{index}"] = str(error)
            continue
        found.episodes += 1
        rows = windows.rows(index)
        held = [slice(windows.first[row], windows.stop[row]) for row in rows]
        if embodiment.state:
            found.parts["state"].update(_joined(episode.state, held))
        if embodiment.action:
            starts = np.concatenate([windows.starts(row) for row in rows])
            found.parts["action"].update(_pooled_actions(episode, starts, layout, dataset))
        if any(dim.relative_to for dim in embodiment.action):
            found.parts["absolute_action"].update(_joined(episode.action, held))
    return found


def _joined(steps: np.ndarray, slices: list[slice]) -> np.ndarray:
    return steps[slices[0]] if len(slices) == 1 else np.concatenate([steps[each] for each in slices])


def _pooled_actions(episode: Episode, starts: np.ndarray, layout: Layout, dataset: Dataset) -> np.ndarray:
    """[n, action dims]: windows overlap, so each distinct block is taken once."""
    blocks = np.unique(block_starts(layout, starts[:, None]))
    values, real = relative_actions(episode, blocks, layout.actions_per_block, dataset.embodiment)
    return values[real]


def statistics_hash(statistics: dict) -> str:
    """A hash of one dataset's statistics, or of {dataset: statistics}; stable over processes, machines and the renaming
    of robots."""
    return hashlib.sha256(json.dumps(_with_names_in_files(statistics), sort_keys=True).encode()).hexdigest()[:16]


def _with_names_in_files(statistics: dict) -> dict:
    """The same, of one dataset or several, with robots by their oldest names."""
    if isinstance(robot := statistics.get("embodiment"), str):
        return statistics | {"embodiment": name_in_files(robot)}
    return {name: _with_names_in_files(value) if isinstance(value, dict) else value
            for name, value in statistics.items()}


def save_statistics(statistics: dict[str, dict], path: str) -> None:
    """{dataset: statistics} as JSON; path: a file or its address."""
    files.write_json(path, statistics)


def load_statistics(path: str) -> dict[str, dict]:
    """Inverse of `save_statistics`."""
    return files.read_json(path)
