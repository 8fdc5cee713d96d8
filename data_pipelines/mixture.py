"""Weighted mixture of datasets: which window stands at which position of the global stream.

The stream is endless and a function of (seed, position) alone; epochs, resuming and several hosts are index
arithmetic on it. Every dataset runs through its windows in an order shuffled anew each epoch, so that each of
its windows is drawn once before any is drawn twice.
"""

import hashlib
import sys
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines.samples import Dataset
from data_pipelines.windows import WindowIndex

_PARTS = 2**20  # weights are rounded to this many parts of the whole


class Draw(NamedTuple):
    """What stands at one position of the stream."""

    position: int
    dataset: int
    window: int


def check_mixture(datasets: Sequence[Dataset]) -> None:
    """Raises ValueError where there is nothing to draw from, a weight is not positive or a name comes
    twice."""
    if not datasets:
        raise ValueError("the mixture is empty: data.datasets needs at least one dataset")
    names = [d.name for d in datasets]
    for dataset in datasets:
        if not (np.isfinite(dataset.weight) and dataset.weight > 0):
            raise ValueError(f"dataset {dataset.name!r}: weight = {dataset.weight}; expected a positive "
                             f"number (leave a dataset out instead of weighing it 0)")
        if names.count(dataset.name) > 1:
            raise ValueError(f"dataset {dataset.name!r} is in the mixture twice")


class Interleave(grain.transforms.DatasetSelectionMap):
    """Position -> (dataset, how many draws that dataset had before), evenly spread: after any number of
    draws, n datasets are each within n draws of their share."""

    def __init__(self, weights: Sequence[float]):
        self._parts = [max(1, round(w / sum(weights) * _PARTS)) for w in weights]

    def __len__(self) -> int:
        return sys.maxsize

    def counts(self, position: int) -> list[int]:
        """Draws from each dataset among the first `position`."""
        counts, left = [], sum(self._parts)
        for part in self._parts:  # each takes its share of what the ones before it left
            rest = position * (left - part) // left
            counts.append(position - rest)
            position, left = rest, left - part
        return counts

    def __getitem__(self, position: int) -> tuple[int, int]:
        before, after = self.counts(position), self.counts(position + 1)
        dataset = next(i for i, (b, a) in enumerate(zip(before, after)) if a > b)
        return dataset, before[dataset]


def make_order(datasets: Sequence[Dataset], windows: Sequence[WindowIndex], seed: int) -> grain.MapDataset:
    """The endless stream of `Draw`s."""
    check_mixture(datasets)
    parts = [
        grain.MapDataset.range(len(index)).shuffle(seed=_shuffle_seed(seed, dataset.name)).repeat()
        .map(lambda window, i=i: (i, window))
        for i, (dataset, index) in enumerate(zip(datasets, windows))
    ]
    mixed = grain.MapDataset.select_from_datasets(parts, Interleave([d.weight for d in datasets]))
    return mixed.map_with_index(lambda position, draw: Draw(position, *draw))


def _shuffle_seed(seed: int, name: str) -> int:
    # Grain seeds epoch e with seed + e: hashing keeps neighbouring seeds from sharing their later epochs
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def positions(datasets: Sequence[Dataset], position: int) -> dict[str, int]:
    """Draws from each dataset among the first `position` of the stream."""
    counts = Interleave([d.weight for d in datasets]).counts(position)
    return {dataset.name: count for dataset, count in zip(datasets, counts)}


def realised_fractions(datasets: Sequence[Dataset], draws: int) -> dict[str, float]:
    """Each dataset's share of the first `draws` of the stream."""
    return {name: count / draws for name, count in positions(datasets, draws).items()}


def describe_mixture(datasets: Sequence[Dataset], windows: Sequence[WindowIndex]) -> dict[str, dict]:
    """What the stream depends on besides the seed, as JSON data: a checkpoint resumes only onto the same."""
    return {
        dataset.name: {
            "order": i, "weight": dataset.weight, "embodiment": dataset.embodiment.name,
            "window_stride": dataset.window_stride, "episodes": len(index.episodes), "windows": len(index),
            "episodes_hash": hashlib.sha256(
                np.stack([index.episodes, index.last_start]).astype("<i8").tobytes()).hexdigest()[:16],
        }
        for i, (dataset, index) in enumerate(zip(datasets, windows))
    }
