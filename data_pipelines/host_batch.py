"""One host's part of a batch, with readable windows in place of unreadable ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.cache.reader import CachedMaker
from data_pipelines.collate import stack
from data_pipelines.episode import BadEpisode
from data_pipelines.mixture import Draw
from data_pipelines.samples import SampleMaker
from data_pipelines.worker_status import WorkerStatus

_REPLACEMENTS = 32  # windows tried in place of one unreadable window


class BadWindow(NamedTuple):
    """A window that was drawn and could not be used."""

    dataset: str
    episode: int
    reason: str


class HostBatch:
    """Makes this host's part of a batch from its G draws, and lists the windows that had to be replaced."""

    def __init__(self, makers: Sequence[SampleMaker | CachedMaker], seed: int, rows: slice,
                 lengths: dict[str, int], status: WorkerStatus):
        """rows: this host's part of the draws; lengths: the padded length of those fields whose rows come without
        padding."""
        self.makers, self.seed, self.rows, self.lengths, self.status = makers, seed, rows, lengths, status

    def __call__(self, draws: Sequence[Draw]) -> tuple[dict[str, np.ndarray], list[BadWindow]]:
        bad: list[BadWindow] = []
        samples = [self._sample(draw, bad) for draw in draws[self.rows]]
        return {name: stack([s[name] for s in samples], self.lengths.get(name)) for name in samples[0]}, bad

    def _sample(self, draw: Draw, bad: list[BadWindow]) -> dict[str, np.ndarray]:
        """The drawn window or, where its recording is unreadable, the next readable one of a random sequence that
        depends on (seed, position) alone. A neighbour would mostly lie in the same recording."""
        maker, first = self.makers[draw.dataset], len(bad)
        window = draw.window
        for attempt in range(_REPLACEMENTS):
            try:
                episode, start = maker.windows[window]
                with self.status.working_on(f"dataset {maker.dataset.name!r} episode {episode} step {start}"):
                    return maker(window, draw.position)
            except BadEpisode as error:
                bad.append(BadWindow(maker.dataset.name, maker.windows[window][0], str(error)))
                rng = np.random.default_rng([self.seed, draw.position, attempt])
                window = int(rng.integers(len(maker.windows)))
        reasons = "\n".join(f"  {b.reason}" for b in bad[first:])
        raise ValueError(f"dataset {maker.dataset.name!r}: {_REPLACEMENTS} windows in a row are "
                         f"unreadable:\n{reasons}")
