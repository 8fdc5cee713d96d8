"""An experiment's mixture: opened, split into training and held-out episodes, normalised, loaded."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines import once
from data_pipelines.cache.format import CacheError
from data_pipelines.cache.reader import LatentCache
from data_pipelines.dataset import Dataset, index_windows
from data_pipelines.episode import Source
from data_pipelines.loader import Loader
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.samples import SampleMaker
from data_pipelines.sources import make_source
from data_pipelines.statistics.compute import mixture_statistics
from data_pipelines.statistics.stored import load_statistics, statistics_hash
from data_pipelines.windows import split_episodes, take_share
from launch.setup import cache as cache_of
from launch.setup import mixture

# Keys of a dataset's entry that are not its source's.
MIXTURE_KEYS = ("source", "embodiment", "weight", "window_stride", "share", "absent_views", "features")


@dataclasses.dataclass(frozen=True)
class Data:
    """The mixture, split into training and held-out episodes, and its statistics."""

    experiment: Any
    training: tuple[Dataset, ...]
    heldout: tuple[Dataset, ...]
    statistics: dict[str, dict]
    cache: LatentCache | None = None  # where training batches come from instead of video

    @property
    def statistics_hash(self) -> str:
        """A hash of all datasets' statistics."""
        return statistics_hash(self.statistics)

    def loader(self, start_step: int = 0, process_index: int = 0, process_count: int = 1) -> Loader:
        """Training batches of one host from global batch `start_step` on."""
        c = self.experiment.config
        return self._loader(self.training, c.train.global_batch_size, workers=c.data.workers, start_step=start_step,
                            cache=self.cache, process_index=process_index, process_count=process_count,
                            augmentation=self.experiment.augmentation)

    @property
    def heldout_robots(self) -> tuple[Dataset, ...]:
        """Held-out episodes with actions. Raises ValueError where there are none."""
        found = tuple(d for d in self.heldout if d.embodiment.action)
        if not found:
            raise ValueError("no held-out episodes with actions: raise data.holdout or add an action-labelled dataset")
        return found

    @property
    def heldout_windows(self) -> int:
        """The number of different windows of `heldout_robots`."""
        return sum(len(index_windows(dataset, self.experiment.layout)) for dataset in self.heldout_robots)

    def heldout_batches(self, batch_size: int, windows: int) -> Iterator[dict]:
        """`windows` held-out windows with actions, or all, each once, in a fixed order; the last batch may be smaller.
        Raises ValueError without any, or where too many are unreadable."""
        config, makers = self.experiment.config, self._makers(self.heldout_robots)
        return once.batches(makers, once.each_once(makers, config.seed, windows), batch_size,
                            config.data.max_bad_fraction)

    def heldout_by_dataset(self, batch_size: int, windows: int) -> Iterator[tuple[Dataset, dict]]:
        """(dataset, batch) of the first `windows` held-out windows of each dataset, or all, each once, always the same;
        a dataset's last batch may be smaller. Raises ValueError where too many are unreadable."""
        config = self.experiment.config
        for maker in self._makers(self.heldout):
            for batch in once.batches([maker], once.each_once([maker], config.seed, windows), batch_size,
                                      config.data.max_bad_fraction):
                yield maker.dataset, batch

    def without_cache(self) -> "Data":
        """The same mixture and statistics, read from recordings instead of a cache."""
        config = self.experiment.config.copy_and_resolve_references()
        config.data.cache = ""
        return open_data(dataclasses.replace(self.experiment, config=config), statistics=self.statistics)

    def clips(self, count: int) -> np.ndarray:
        """uint8 [count, T, H, W, 3]: training windows for fitting a codec."""
        with self._loader(self.training, count) as loader:
            return next(loader)["video"]

    def makers(self) -> list[SampleMaker]:
        """Cutters of the training windows, one per dataset."""
        return self._makers(self.training)

    def _makers(self, datasets: tuple[Dataset, ...]) -> list[SampleMaker]:
        e = self.experiment
        return [SampleMaker(dataset, i, e.layout, e.inputs.tokenize, fields=e.inputs.batch_fields(),
                            augmentation=e.augmentation.still) for i, dataset in enumerate(datasets)]

    def _loader(self, datasets, batch_size: int, **options) -> Loader:
        e, c = self.experiment, self.experiment.config
        options = {"augmentation": e.augmentation.still, **options}
        return Loader(datasets, e.layout, e.inputs.tokenize, fields=e.inputs.batch_fields(), seed=c.seed,
                      global_batch_size=batch_size, max_bad_fraction=c.data.max_bad_fraction, **options)


def open_datasets(experiment, cache: LatentCache | None = None) -> list[tuple[Dataset, np.ndarray]]:
    """(dataset of the training episodes, held-out episodes) of every part of the mixture, without statistics."""
    config, parts, places = experiment.config, [], {}
    entries = mixture.entries(config.data.datasets)
    for name, entry in entries.items():
        mixture.check_entry(name, entry)
        options = {key: value for key, value in entry.to_dict().items()
                   if key not in MIXTURE_KEYS}
        opened = functools.partial(make_source, entry.source, name, **options)
        source = cache.source(name, opened) if cache else opened()
        # a recording that two datasets read is on the same side in both
        first = places.setdefault((entry.source, entry.path, entry.get("split", "")), name)
        training, heldout = split_episodes(first, _chosen(name, source, options), config.data.holdout)
        training = take_share(first, training, entry.get("share", 1.0))
        robot = get_embodiment(entry.embodiment)
        if not robot.action and not experiment.family.imagines_video:
            raise ValueError(f"dataset {name!r}: recordings of {entry.embodiment!r} have no actions, and family "
                             f"{experiment.family.name!r} predicts nothing else, so that they would teach it nothing; "
                             "leave the dataset out, or train a family that imagines video")
        dataset = Dataset(name, source, robot, episodes=training,
                          window_stride=entry.get("window_stride", 1),
                          absent_views=tuple(entry.get("absent_views", ())), features=entry.get("features", ""))
        parts.append((dataset, heldout))
    if not parts:
        return []
    windows = {dataset.name: len(index_windows(dataset, experiment.layout)) for dataset, _ in parts}
    weights = mixture.weights(config.data.datasets, windows, config.data.size_exponent, _tokens(experiment, parts))
    return [(dataclasses.replace(dataset, weight=weights[dataset.name]), heldout) for dataset, heldout in parts]


def _chosen(name: str, source: Source, options: dict) -> np.ndarray:
    """The recordings of a dataset that its filters leave, int64. Raises ValueError where they leave none."""
    chosen = np.unique(source.stretches()[:, 0])
    if not len(chosen):
        filters = {key: options[key] for key in ("successful", "described", "where", "keep") if options.get(key)}
        raise ValueError(f"dataset {name!r}: {filters} leaves none of its {len(source)} recordings" if filters else
                         f"dataset {name!r}: none of its {len(source)} recordings has a step")
    return chosen


def _tokens(experiment, parts: list[tuple[Dataset, np.ndarray]]) -> dict[str, float] | None:
    """{dataset: tokens of a window} where they are what is counted."""
    if experiment.config.data.unit == "windows":
        return None
    per_frame = experiment.model.spec.frame_tokens
    return {dataset.name: mixture.tokens_of(dataset, experiment.layout, per_frame) for dataset, _ in parts}


def open_data(experiment, *, statistics: dict | None = None) -> Data:
    """Opens the mixture. Statistics: given, or read from data.statistics, or computed."""
    config, cache, augmentation = experiment.config, cache_of.open_cache(experiment), experiment.augmentation
    if cache and augmentation != augmentation.still:
        raise CacheError(f"data.cache = {config.data.cache} holds one picture of each window: data.augment must be "
                         "off, or data.cache empty")
    parts = open_datasets(experiment, cache)
    found = statistics or _statistics(experiment, [dataset for dataset, _ in parts], cache)
    if missing := sorted({dataset.name for dataset, _ in parts} - found.keys()):
        raise ValueError(f"statistics lack dataset {missing[0]!r}; they have {sorted(found)}")
    known = [(dataclasses.replace(dataset, statistics=found[dataset.name]), heldout) for dataset, heldout in parts]
    return Data(experiment, tuple(d for d, _ in known),
                tuple(dataclasses.replace(d, episodes=heldout) for d, heldout in known if len(heldout)),
                {d.name: found[d.name] for d, _ in known}, cache)


def _statistics(experiment, datasets: list[Dataset], cache: LatentCache | None) -> dict[str, dict]:
    config = experiment.config
    given = load_statistics(config.data.statistics) if config.data.statistics else None
    if cache:
        if given and statistics_hash(given) != statistics_hash(cache.statistics()):
            raise CacheError(f"data.cache = {config.data.cache} was normalised by other statistics than those in "
                             f"data.statistics = {config.data.statistics}; leave that empty")
        return cache.statistics()
    if given:
        return given
    return mixture_statistics(datasets, experiment.layout, config.data.statistics_per,
                              max_bad_fraction=config.data.max_bad_fraction)
