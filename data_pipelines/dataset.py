"""One part of the mixture: what it is made of, which fields it can fill, and its windows."""

import dataclasses

import numpy as np

from data_pipelines.episode import Source
from data_pipelines.robots.embodiment import Embodiment
from data_pipelines.windows import WindowIndex, window_span
from world_model.batch import Layout

PICTURES = ("video", "frame_mask", "views", "view_mask")
TEXT = ("text_ids", "text_length")
ACTIONS = ("actions", "action_mask")
ORIGIN = ("embodiment_id", "dataset_id", "episode_index", "start", "sample_index")
FIELDS = (*PICTURES, *TEXT, "state", *ACTIONS, *ORIGIN)  # what is made of recordings: world_model.batch.batch_spec
Weight = float | tuple[tuple[int, float], ...]  # constant, or (step, weight) pairs that hold from their step on


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One part of the mixture: a source, the robot that it records, and how much of it is read."""

    name: str
    source: Source
    embodiment: Embodiment
    weight: Weight = 1.0  # share of the draws, relative to the other datasets
    episodes: np.ndarray | None = None  # indices in the source, int64; None: all
    window_stride: int = 1  # steps between window starts
    absent_views: tuple[str, ...] = ()  # views of the embodiment that its recordings lack
    features: str = ""  # folder of fields that were computed beforehand (features.py); empty: there are none
    statistics: dict | None = None  # data_pipelines.statistics; may be None without state and action


def index_windows(dataset: Dataset, layout: Layout) -> WindowIndex:
    """The windows of a dataset, from metadata alone.

    Raises ValueError where it is empty, or its recordings run at another rate than the robot's actions, which, unlike
    video, cannot be resampled.
    """
    kept = dataset.source.stretches()
    if dataset.episodes is not None:
        kept = kept[np.isin(kept[:, 0], dataset.episodes)]
    episodes = kept[:, 0]
    if not len(episodes):
        raise ValueError(f"dataset {dataset.name!r} has no episodes")
    rates = np.asarray(dataset.source.rates())[episodes]
    off = np.flatnonzero(rates != dataset.embodiment.rate)
    if dataset.embodiment.action and len(off):
        raise ValueError(f"dataset {dataset.name!r}: episode {episodes[off[0]]} is recorded at "
                         f"{rates[off[0]]:g} Hz, but embodiment {dataset.embodiment.name!r} acts at "
                         f"{dataset.embodiment.rate:g} Hz")
    lengths = np.asarray(dataset.source.lengths())[episodes]
    spans = window_span(layout, rates / dataset.embodiment.rate)
    windows = WindowIndex.build(kept, lengths, spans, dataset.window_stride)
    if not len(windows):
        raise ValueError(f"dataset {dataset.name!r}: none of its {len(episodes)} kept stretches begins early enough "
                         f"for a window of {spans.min() + 1} steps")
    return windows


def check_fields(fields: dict[str, tuple], dataset: Dataset) -> None:
    """Raises ValueError where nobody makes a field, or the robot has more cameras than the row has views."""
    for name in fields:
        if name not in FIELDS and not dataset.features:
            raise ValueError(f"batch field {name!r} is unknown; known: {', '.join(FIELDS)}; any other comes from "
                             f"data.datasets.{dataset.name}.features, a folder of what was computed beforehand")
    for name in ("views", "view_mask"):
        if name in fields:
            dataset.embodiment.check_views(fields[name][0][0])


def check_absent(dataset: Dataset, fields: dict[str, tuple]) -> None:
    """Raises ValueError where the views that a dataset is said to lack are not the robot's, are all that it has, or
    would leave a hole in a tiled canvas."""
    views, absent = dataset.embodiment.views, dataset.absent_views
    where = f"dataset {dataset.name!r}: absent_views = {absent}"
    if unknown := [view for view in absent if view not in views]:
        raise ValueError(f"{where}: embodiment {dataset.embodiment.name!r} has no view {unknown[0]!r}; it has {views}")
    if absent and len(absent) == len(views):
        raise ValueError(f"{where}: no view is left to look at")
    if absent and "video" in fields:
        raise ValueError(f"{where}: a tiled canvas has a cell for each view; only families that take views apart can "
                         "do without one")
