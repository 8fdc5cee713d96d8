"""The page about a mixture: what it says is so, and what is wrong with cameras and files is said."""

import shutil

import numpy as np
import pytest

from launch import build, inspect_data
from tests import lerobot_config


@pytest.fixture
def config(tmp_path):
    shutil.copytree(lerobot_config.FIXTURE.replace("v30", "v21"), tmp_path / "v21")
    config = lerobot_config.get_config()
    for entry in config.data.datasets.values():
        entry.path = str(tmp_path / "v21")
    return config


def test_a_page_tells_what_there_is_and_what_is_wrong(config, tmp_path):
    cameras = tmp_path / "v21/videos/chunk-000"
    (cameras / "observation.images.wrist/episode_000003.mp4").write_bytes(b"")
    clips, discs = build.data(config, tmp_path).makers()
    page, problems = inspect_data.section(discs, 20, 0.75, 0.751)
    assert "cameras 'exterior_1' and 'exterior_2' show the same, in 3 of 4 sampled episodes" in str(problems)
    assert "episode_000003.mp4: the file is empty, in 1 of 4 sampled episodes" in str(problems)
    for said in ("droid, 8 state and 8 action dimensions", "4; 9 to 61 steps, median 38", "<td>67, every 1 steps</td>",
                 "75.00%, 75.10%", "4 among 4 sampled episodes", "move the disc left", "15 Hz", "show the same"):
        assert said in page, said
    assert page.count("data:image/png") == page.count("data:image/svg+xml") == 1
    page, problems = inspect_data.section(clips, 20, 0.25, 0.249)
    assert not problems and "data:image/svg+xml" not in page


def test_camera_faults():
    rng = np.random.default_rng(0)
    moving = rng.integers(0, 255, (3, 8, 8, 3), np.uint8)
    faults = inspect_data.camera_faults({"a": moving, "b": moving.copy(), "c": moving[:1].repeat(3, 0),
                                         "d": rng.integers(0, 255, (3, 4, 4, 3), np.uint8)})
    assert faults == ["camera 'c' is frozen", "cameras 'a' and 'b' show the same"]


def test_the_loader_alone_is_timed(config, tmp_path):
    lines = inspect_data.speed(build.data(config, tmp_path), seconds=0.5)
    assert "windows per second here" in lines[0] and "different episodes" in lines[1]
