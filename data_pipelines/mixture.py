"""Weighted mixture of datasets: which window stands at which position of the global stream.

The stream is endless and a function of (seed, position) alone; epochs, resuming and several hosts are index arithmetic
on it. Every dataset runs through its windows in an order that is shuffled anew each epoch, so that each of its windows
is drawn once before any is drawn twice.
"""

import bisect
import hashlib
import sys
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines.dataset import Dataset, Weight
from data_pipelines.robots.embodiments import name_in_files
from data_pipelines.windows import WindowIndex

_PARTS = 2**20  # weights are rounded to this many parts of the whole


class Draw(NamedTuple):
    """The window that stands at one position of the stream."""

    position: int
    dataset: int
    window: int


def weight_at(weight: Weight, step: int) -> float:
    """The value that a weight, which may change over steps, has at one of them."""
    if isinstance(weight, (int, float)):
        return float(weight)
    return next((float(value) for begin, value in reversed(weight) if begin <= step), 0.0)


def check_mixture(datasets: Sequence[Dataset]) -> None:
    """Raises ValueError where there is nothing to draw from, a weight is not positive or a name comes twice."""
    if not datasets:
        raise ValueError("the mixture is empty: data.datasets needs at least one dataset")
    names = [d.name for d in datasets]
    for dataset in datasets:
        pairs = [(0, dataset.weight)] if isinstance(dataset.weight, (int, float)) else dataset.weight
        if not all(np.isfinite(value) and value >= 0 for _, value in pairs) or dataset.weight == 0:
            raise ValueError(f"dataset {dataset.name!r}: weight = {dataset.weight}; expected a positive "
                             f"number (leave a dataset out instead of weighing it 0)")
        steps = [step for step, _ in pairs]
        if steps[:1] != [0] or steps != sorted(set(steps)):
            raise ValueError(f"dataset {dataset.name!r}: weight = {dataset.weight}; expected pairs of (step, weight) "
                             f"with rising steps, the first 0")
        if names.count(dataset.name) > 1:
            raise ValueError(f"dataset {dataset.name!r} is in the mixture twice")
    for step in _steps([d.weight for d in datasets]):
        if not any(weight_at(d.weight, step) for d in datasets):
            raise ValueError(f"data.datasets: every weight is 0 from step {step} on")


def _steps(weights: Sequence[Weight]) -> list[int]:
    """The steps at which some weight changes, 0 first."""
    pairs = [weight for weight in weights if not isinstance(weight, (int, float))]
    return sorted({0, *(int(step) for each in pairs for step, _ in each)})


class Interleave(grain.transforms.DatasetSelectionMap):
    """Maps a position to (dataset, how many draws that dataset had before). Draws are evenly spread: after any number
    of them at constant weights, each of n datasets is within n draws of its share."""

    def __init__(self, weights: Sequence[Weight], batch: int = 1):
        """weights: numbers, or (step, weight) pairs that hold from their step on; batch: the positions of a step."""
        self._starts, self._parts, self._before = [], [], []
        for step in _steps(weights):
            if self._starts:
                self._before.append(self.counts(step * batch))
            else:
                self._before.append([0] * len(weights))
            now = [weight_at(weight, step) for weight in weights]
            self._starts.append(step * batch)
            self._parts.append([max(1, round(w / sum(now) * _PARTS)) if w else 0 for w in now])

    def __len__(self) -> int:
        return sys.maxsize // 2  # endless: the lengths of batches that are made of it are to be numbers too

    def counts(self, position: int) -> list[int]:
        """The number of draws from each dataset among the first `position`."""
        phase = bisect.bisect_right(self._starts, position) - 1
        position, counts = position - self._starts[phase], list(self._before[phase])
        left = sum(self._parts[phase])
        for i, part in enumerate(self._parts[phase]):  # each dataset takes its share of what those before it left
            rest = position * (left - part) // left if left else position
            counts[i] += position - rest
            position, left = rest, left - part
        return counts

    def __getitem__(self, position: int) -> tuple[int, int]:
        before, after = self.counts(position), self.counts(position + 1)
        dataset = next(i for i, (b, a) in enumerate(zip(before, after)) if a > b)
        return dataset, before[dataset]


def make_order(datasets: Sequence[Dataset], windows: Sequence[WindowIndex], seed: int,
               batch: int = 1) -> grain.MapDataset:
    """The endless stream of `Draw`s; batch: the draws of a step."""
    check_mixture(datasets)
    parts = [
        grain.MapDataset.range(len(index)).shuffle(seed=_shuffle_seed(seed, dataset.name)).repeat()
        .map(lambda window, i=i: (i, window))
        for i, (dataset, index) in enumerate(zip(datasets, windows))
    ]
    mixed = grain.MapDataset.select_from_datasets(parts, Interleave([d.weight for d in datasets], batch))
    return mixed.map_with_index(lambda position, draw: Draw(position, *draw))


def _shuffle_seed(seed: int, name: str) -> int:
    # Grain seeds epoch e with seed + e; a hash keeps neighbouring seeds from sharing their later epochs
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def positions(datasets: Sequence[Dataset], position: int, batch: int = 1) -> dict[str, int]:
    """The number of draws from each dataset among the first `position` of the stream."""
    counts = Interleave([d.weight for d in datasets], batch).counts(position)
    return {dataset.name: count for dataset, count in zip(datasets, counts)}


def realised_fractions(datasets: Sequence[Dataset], draws: int, batch: int = 1) -> dict[str, float]:
    """Each dataset's share of the first `draws` of the stream."""
    return {name: count / draws for name, count in positions(datasets, draws, batch).items()}


def asked_fractions(weights: dict[str, Weight], steps: int) -> dict[str, float]:
    """Each dataset's share of `steps` steps by its weight."""
    steps = max(steps, 1)
    edges = [step for step in _steps(list(weights.values())) if step < steps] + [steps]
    total = dict.fromkeys(weights, 0.0)
    for begin, end in zip(edges, edges[1:]):
        now = {name: weight_at(weight, begin) for name, weight in weights.items()}
        for name, weight in now.items():
            total[name] += (end - begin) * weight / sum(now.values())
    return {name: share / steps for name, share in total.items()}


def describe_mixture(datasets: Sequence[Dataset], windows: Sequence[WindowIndex]) -> dict[str, dict]:
    """What the stream depends on besides the seed, as JSON data: a checkpoint resumes only onto the same. Robots go by
    their oldest names."""
    return {
        dataset.name: {
            "order": i, "weight": _as_json(dataset.weight), "embodiment": name_in_files(dataset.embodiment.name),
            "window_stride": dataset.window_stride, "episodes": len(index.episodes), "windows": len(index),
            "episodes_hash": hashlib.sha256(
                np.stack([index.episode, index.first, index.last]).astype("<i8").tobytes()).hexdigest()[:16],
        }
        for i, (dataset, index) in enumerate(zip(datasets, windows))
    }


def _as_json(weight: Weight):
    return weight if isinstance(weight, (int, float)) else [[int(step), float(value)] for step, value in weight]
