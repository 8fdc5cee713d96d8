"""Recordings for Rerun, against a stand-in that notes the calls: the package, 170 MB, is no part of the lock."""

import sys
import types

import numpy as np
import pytest

from data_pipelines.robots.embodiments import get_embodiment
from launch.simulation import episode_pictures, rerun_log
from launch.simulation.closed_loop import Run


class Recording:
    """Stand-in for a recording of one file; `logged` is {(entity, step or None): what was logged}."""

    made: list = []  # noqa: RUF012

    def __init__(self, application, recording_id):
        self.logged, self.step, self.closed, self.path = {}, None, False, None
        Recording.made.append(self)

    def save(self, path):
        self.path = path

    def set_time(self, timeline, *, sequence):
        assert timeline == "step"
        self.step = sequence

    def log(self, entity, value, *, static=False):
        assert self.path is not None and not self.closed  # before `save` nothing reaches the file
        self.logged[entity, None if static else self.step] = value

    def disconnect(self):
        self.closed = True


@pytest.fixture
def rerun(monkeypatch):
    def kind(name):
        return lambda value=None, **named: (name, named or value)
    module = types.SimpleNamespace(RecordingStream=Recording, **{n: kind(n) for n in ("Image", "Scalars", "SeriesLines")})
    monkeypatch.setitem(sys.modules, "rerun", module)
    Recording.made.clear()


def test_every_step_is_logged_at_its_place(rerun, tmp_path):
    """Three steps: four observations, three actions."""
    rng, robot = np.random.default_rng(0), get_embodiment("pusht")
    run = Run(7, None, frames=[{"image": rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)} for _ in range(4)],
              states=list(rng.normal(size=(4, 2))), actions=list(rng.normal(size=(3, 2))))
    imagined = rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    rerun_log.write(tmp_path / "best_7.rrd", run, robot, imagined)
    recording, = Recording.made
    assert recording.closed and recording.path == tmp_path / "best_7.rrd"
    assert recording.logged.pop(("state", None)) == ("SeriesLines", {"names": ["agent_x", "agent_y"]})
    assert recording.logged.pop(("action", None)) == ("SeriesLines", {"names": ["target_x", "target_y"]})
    expected = {("camera/image", i): ("Image", run.frames[i]["image"]) for i in range(4)}
    expected |= {("imagined", i): ("Image", imagined[i]) for i in range(4)}
    expected |= {("state", i): ("Scalars", run.states[i]) for i in range(4)}
    expected |= {("action", i): ("Scalars", run.actions[i]) for i in range(3)}
    assert recording.logged.keys() == expected.keys()
    for key, (kind, value) in expected.items():
        assert recording.logged[key][0] == kind
        np.testing.assert_array_equal(recording.logged[key][1], value)


def test_best_and_worst_episodes_with_what_was_imagined_of_each_step(rerun, tmp_path):
    """A chunk chosen at step 1 imagines steps 2 and 3; before that the first frames stand."""
    def frames(seed):
        return [{"image": np.full((2, 2, 3), 10 * seed + i, np.uint8)} for i in range(4)]
    runs = [Run(seed, types.SimpleNamespace(coverage=[seed / 10]), frames=frames(seed), states=[np.zeros(2)] * 4,
                actions=[np.zeros(2)] * 3, imagined=[(1, np.uint8(100 + seed))]) for seed in range(3)]
    robot = types.SimpleNamespace(canvas=lambda views: views["image"], layout=types.SimpleNamespace(frame_stride=1))
    engine = types.SimpleNamespace(robot=robot, imagines_video=True, embodiment=get_embodiment("pusht"),
                                   decode=lambda value: np.full((4, 2, 2, 3), value))
    episode_pictures.write_recordings(tmp_path, runs, engine, 1)
    assert [recording.path.name for recording in Recording.made] == ["best_2.rrd", "worst_0.rrd"]
    assert [Recording.made[0].logged["imagined", i][1].mean() for i in range(4)] == [20, 21, 102, 102]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ValueError, match=r"'rerun-sdk': pip install -e '.\[rerun\]'"):
        rerun_log.load()
