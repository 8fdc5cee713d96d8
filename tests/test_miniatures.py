"""Miniatures of public sets are read as the sets are: by recipes' robots, with the conventions that they are for."""

import tempfile
from unittest import mock

import numpy as np
import pytest

from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.samples import check_episode
from data_pipelines.simulators.miniatures import sets, writers
from data_pipelines.sources import make_source

SMALL = ("fractal", "libero", "so101")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out, temporary = tmp_path_factory.mktemp("miniatures") / "all", tmp_path_factory.mktemp("temporary")
    with mock.patch.object(tempfile, "tempdir", str(temporary)):
        assert writers.write(out, {name: sets.MINIATURES[name] for name in SMALL})
    assert not list(temporary.glob("*tfds"))  # nothing stays behind
    return out


def test_what_is_there_is_not_written_again(folder):
    assert not writers.write(folder, {name: sets.MINIATURES[name] for name in SMALL})
    (folder / "mine").touch()
    with pytest.raises(FileExistsError, match="holds 'mine'"):
        writers.write(folder, {"libero": sets.MINIATURES["libero"]})
    (folder / "mine").unlink()


@pytest.mark.parametrize("name, robot, entry", [
    ("fractal", "google_robot_absolute", {"kind": "rlds", "schema": "rt_1", "conventions": ("openvla_rt_1",)}),
    ("libero", "libero", {"kind": "lerobot", "state": "state", "action": "actions",
                          "images": {"image": "image", "wrist_image": "wrist_image"}}),
    ("so101", "so101", {"kind": "lerobot", "state": "observation.state", "action": "action", "images": {
        "front": "observation.images.front", "wrist": "observation.images.gripper"}})])
def test_a_robot_reads_its_miniature(folder, name, robot, entry):
    source, mini = make_source(name=name, path=str(folder / name), **entry), sets.MINIATURES[name]
    assert source.lengths().tolist() == [mini.steps] * mini.episodes
    for file in source.files:
        assert (folder / file).is_file()
    for i in range(mini.episodes):
        episode = source[i]
        check_episode(episode, get_embodiment(robot))
        first, last = (episode.read_frames(np.array([t])) for t in (0, mini.steps - 1))
        for view in get_embodiment(robot).views:  # the square is at the left first and at the right last
            middle = first[view].shape[2] // 2
            assert first[view][..., :middle, :].max() > 200 > first[view][..., middle:, :].max()
            assert last[view][..., middle:, :].max() > 200 > last[view][..., :middle, :].max()
    if name == "fractal":
        assert set(np.unique(np.concatenate([source[i].action[:, -1] for i in range(3)]))) == {0, 1}
