"""Episodes in memory whose every number says where it came from."""

import dataclasses

import numpy as np

from data_pipelines.dataset import Dataset
from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.robots.embodiment import Dimension, Embodiment
from data_pipelines.statistics.compute import compute_statistics
from world_model.batch import Layout, batch_spec

LAYOUT = Layout(frames=17, height=6, width=8, frames_per_block=2, actions_per_block=16, states_per_block=2)
ROBOT = Embodiment(name="fake", id=7, views=("image",), view_layout="single", rate=10.0,
                   state=(Dimension("x", 0), Dimension("y", 9)),
                   action=(Dimension("dx", 0, relative_to="x"), Dimension("grip", 7)))
BATCH = batch_spec(LAYOUT, action_dim=32, state_dim=64, text_length=8)
CLIPS = Embodiment(name="clips", id=0, views=("image",), view_layout="single", rate=10.0)


@dataclasses.dataclass
class FakeSource:
    """Pixel values are (step, episode, 0); state (step, -episode); action (step + step % 5, step % 3)."""

    lengths_: list[int]
    name: str = "fake"
    rate: float = 10.0
    robot: bool = True
    unreadable: tuple[int, ...] = ()
    stretches_: list | None = None  # what `stretches` returns; None: everything
    asked: list = dataclasses.field(default_factory=list)  # steps that were decoded, per call

    def lengths(self) -> np.ndarray:
        return np.array(self.lengths_, np.int64)

    def rates(self) -> np.ndarray:
        return np.full(len(self), self.rate)

    def stretches(self) -> np.ndarray:
        episodes = np.arange(len(self)) if self.stretches_ is None else None
        return np.array(self.stretches_) if episodes is None else np.stack(
            [episodes, 0 * episodes, self.lengths()], 1)

    def __len__(self) -> int:
        return len(self.lengths_)

    def __getitem__(self, index: int) -> Episode:
        if index in self.unreadable:
            raise BadEpisode(f"{self.name} episode {index}: torn file")
        length = self.lengths_[index]
        step = np.arange(length, dtype=np.float32)
        state = np.stack([step, np.full_like(step, -index)], 1)
        action = np.stack([step + step % 5, step % 3], 1)

        def read_frames(steps: np.ndarray) -> dict[str, np.ndarray]:
            self.asked.append(np.asarray(steps).tolist())
            frames = np.zeros((len(steps), 6, 8, 3), np.uint8)
            frames[..., 0] = np.asarray(steps)[:, None, None]
            frames[..., 1] = index
            return {"image": frames}

        return Episode(self.name, index, length, self.rate, f"task {index}", state if self.robot else None,
                       action if self.robot else None, read_frames)


def tokenize(prompt: str) -> tuple[np.ndarray, int]:
    """Bytes of the prompt, 8 at most."""
    found = list(prompt.encode())
    if len(found) > 8:
        raise ValueError(f"prompt {prompt[:20]!r}... has {len(found)} tokens, text length is 8")
    return np.pad(np.array(found, np.int32), (0, 8 - len(found))), len(found)


def robots(lengths=(40, 60, 50), weight=1.0, name="fake", embodiment=ROBOT, **fields) -> Dataset:
    dataset = Dataset(name, FakeSource(list(lengths), name, **fields), embodiment, weight)
    return dataclasses.replace(dataset, statistics=compute_statistics(dataset, LAYOUT))


def clips(lengths=(40, 60), weight=1.0, name="clips", **fields) -> Dataset:
    return Dataset(name, FakeSource(list(lengths), name, robot=False, **fields), CLIPS, weight)
