"""Windows of some datasets, each exactly once, in the order in which the mixture's stream first meets them."""

import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from data_pipelines.episode import BadEpisode, check_limit
from data_pipelines.mixture import Draw, make_order
from data_pipelines.samples import SampleMaker

_PATIENCE = 20  # times as many draws as there are windows, after which those that the stream still lacks follow


def each_once(makers: Sequence[SampleMaker], seed: int, windows: int) -> list[Draw]:
    """The first `windows` different windows of the stream, or all where there are fewer."""
    indices = [maker.windows for maker in makers]
    total = sum(map(len, indices))
    order, found = make_order([maker.dataset for maker in makers], indices, seed), {}
    for position in range(_PATIENCE * total):
        if len(found) == min(windows, total):
            break
        found.setdefault((order[position].dataset, order[position].window), position)
    every = ((dataset, window) for dataset, index in enumerate(indices) for window in range(len(index)))
    for position, key in enumerate(every, _PATIENCE * total):
        if len(found) < windows:
            found.setdefault(key, position)
    return [Draw(position, *key) for key, position in found.items()]


def batches(makers: Sequence[SampleMaker], draws: Sequence[Draw], batch_size: int, max_bad_fraction: float
            ) -> Iterator[dict[str, np.ndarray]]:
    """Rows of the drawn windows in batches, the last as large as what is left; decoded in threads a batch ahead.

    Unreadable windows are named and left out. Raises ValueError where their share is above max_bad_fraction.
    """
    bad: list[str] = []
    asked = [(makers[draw.dataset], draw.window, draw.position) for draw in draws]
    for rows in read_rows(asked, batch_size):
        for reason in (row for row in rows if isinstance(row, str)):
            logging.warning("left out an unreadable window: %s", reason)
            bad.append(reason)
        check_limit(len(bad), len(draws), max_bad_fraction, "windows", bad)
        if good := [row for row in rows if isinstance(row, dict)]:
            yield {name: np.stack([row[name] for row in good]) for name in good[0]}


def read_rows(asked: Sequence[tuple[SampleMaker, int, int]], size: int) -> Iterator[list[dict | str]]:
    """The rows (maker, window, sample index), so many at once, or why one cannot be read; decoded in threads so many
    ahead."""
    groups = [asked[i:i + size] for i in range(0, len(asked), size)]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        ahead = [threads.submit(_make_row, *each) for each in groups[0]]
        for following in itertools.chain(groups[1:], [()]):
            rows = [future.result() for future in ahead]
            ahead = [threads.submit(_make_row, *each) for each in following]
            yield rows


def _make_row(maker: SampleMaker, window: int, sample_index: int) -> dict | str:
    try:
        return maker(window, sample_index)
    except BadEpisode as error:
        return str(error)
