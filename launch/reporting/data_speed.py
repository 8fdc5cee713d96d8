"""How fast windows of a mixture are made, and of how many episodes a batch is."""

import dataclasses
import time

import numpy as np

from data_pipelines.episode import BadEpisode, Episode, Source
from data_pipelines.mixture import make_order
from data_pipelines.samples import SampleMaker
from launch.setup.datasets import Data


def speed(data: Data, seconds: float = 10.0) -> tuple[float, list[str]]:
    """(windows per second of the loader alone, sentences on it)."""
    size, batches = data.experiment.config.train.global_batch_size, 0
    with data.loader() as loader:
        next(loader)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            next(loader)
            batches += 1
        each = (time.perf_counter() - began) / batches
    where = f"{size / each:.2f} windows per second here"
    return size / each, [
        f"The loader alone makes {where}: a host like this one feeds steps of {each:.2f} s or more at {size} windows a "
        f"step.", decoding(data)]


def diversity(data: Data, makers: list[SampleMaker], batches: int = 50) -> str:
    """A sentence on how many episodes the first batches come from; index arithmetic, nothing is read."""
    size, found = data.experiment.config.train.global_batch_size, []
    order = make_order(data.training, [maker.windows for maker in makers], data.experiment.config.seed, size)
    for first in range(0, batches * size, size):
        draws = [order[position] for position in range(first, first + size)]
        found.append(len({(draw.dataset, makers[draw.dataset].windows[draw.window][0]) for draw in draws}))
    return (f"A batch of {size} holds windows of {np.mean(found):.1f} different episodes on average, of {min(found)} "
            f"at least (the first {batches} batches).")


@dataclasses.dataclass
class Timed:
    """A source whose episodes count the seconds that reading frames takes."""

    source: Source
    seconds: float = 0.0

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def __getitem__(self, index: int) -> Episode:
        episode = self.source[index]

        def read_frames(steps: np.ndarray) -> dict[str, np.ndarray]:
            began = time.perf_counter()
            try:
                return episode.read_frames(steps)
            finally:
                self.seconds += time.perf_counter() - began

        return dataclasses.replace(episode, read_frames=read_frames)


def decoding(data: Data, windows: int = 16) -> str:
    """A sentence on what share of making a window goes into its frames."""
    if data.cache:
        return "Windows come from the latent cache: nothing is decoded."
    rng, total, inside = np.random.default_rng(0), 0.0, 0.0
    for maker in data.makers():
        timed = Timed(maker.dataset.source)
        maker.dataset = dataclasses.replace(maker.dataset, source=timed)
        began = time.perf_counter()
        for window in rng.integers(len(maker.windows), size=windows).tolist():
            try:
                maker(window, 0)
            except BadEpisode:
                continue
        total, inside = total + time.perf_counter() - began, inside + timed.seconds
    return f"Reading and decoding frames takes {inside / total:.0%} of the time in which one thread makes a window."
