"""The episodes of a dataset as a cache knows them, without its recordings."""

import functools
from collections.abc import Callable

import numpy as np

from data_pipelines.episode import Episode, Source


class CachedSource:
    """`Source` whose lengths, rates and stretches come from a cache; recordings are opened only where one is asked
    for."""

    def __init__(self, lengths: np.ndarray, rates: np.ndarray, kept: np.ndarray, original: Callable[[], Source]):
        self._lengths, self._rates, self._kept, self._original = lengths, rates, kept, original

    def lengths(self) -> np.ndarray:
        """The steps of each episode, int64 [episodes]."""
        return self._lengths

    def rates(self) -> np.ndarray:
        """The steps per second of each episode, float64 [episodes]."""
        return self._rates

    def stretches(self) -> np.ndarray:
        """The stretches where windows may begin, as `Source` says."""
        return self._kept

    @property
    def files(self) -> list[str]:
        """The files of the recordings."""
        return self._opened.files

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Episode:
        return self._opened[index]

    @functools.cached_property
    def _opened(self) -> Source:
        return self._original()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}
