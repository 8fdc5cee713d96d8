"""Feeds recordings in a format of your own to the model: a robot, a source of episodes, batches.

    python examples/plug_in_a_dataset.py

A source is any class with the methods of data_pipelines.episode.Source. For training by command, give it a branch in
data_pipelines/sources/__init__.py and its robot a `register(...)` in data_pipelines/robots/embodiments.py.
"""

import dataclasses

import numpy as np

from configs import quickstart
from data_pipelines.dataset import Dataset
from data_pipelines.episode import Episode
from data_pipelines.loader import Loader
from data_pipelines.robots.embodiment import Dimension, Embodiment
from data_pipelines.statistics.compute import compute_statistics
from launch.setup.experiment import Experiment

ARM = Embodiment(name="my_arm", id=200, views=("front",), view_layout="single", rate=10.0,
                 state=(Dimension("joint", 0),), action=(Dimension("joint", 0, relative_to="joint"),))


class MyRecordings(list):
    """A list of joint angles over time, one array an episode; a real source reads files where it is asked for them."""

    def lengths(self) -> np.ndarray:
        return np.array([len(angles) - 1 for angles in self])

    def rates(self) -> np.ndarray:
        return np.full(len(self), ARM.rate)

    def stretches(self) -> np.ndarray:
        return np.array([(episode, 0, length) for episode, length in enumerate(self.lengths())])

    def __getitem__(self, index: int) -> Episode:
        angles = np.float32(super().__getitem__(index))[:, None]

        def read_frames(steps: np.ndarray) -> dict[str, np.ndarray]:  # pictures as bright as the angle is large
            return {"front": np.uint8(127 * (1 + angles[steps, :, None, None])) + np.zeros((48, 64, 3), np.uint8)}

        return Episode("mine", index, len(angles) - 1, ARM.rate, "wave", state=angles[:-1], action=angles[1:],
                       read_frames=read_frames)


def main() -> None:
    """Prints what a batch holds."""
    experiment = Experiment(quickstart.get_config("debug"))
    mine = Dataset("mine", MyRecordings(np.sin(0.2 * np.arange(n)) for n in (80, 120, 100)), ARM)
    mine = dataclasses.replace(mine, statistics=compute_statistics(mine, experiment.layout))
    with Loader([mine], experiment.layout, experiment.inputs.tokenize, fields=experiment.inputs.batch_fields(), seed=0,
                global_batch_size=8) as loader:
        batch = next(loader)
    print("\n".join(f"{name}: {value.dtype} {value.shape}" for name, value in batch.items()))


if __name__ == "__main__":
    main()
