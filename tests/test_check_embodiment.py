"""The page about robots, and that actions which do not come back are told."""

import re
import shutil
import types

import numpy as np
import pytest

from launch import check_embodiment
from launch.setup.experiment import Experiment
from tests import lerobot_config
from tests.lerobot_files import table_of


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    return Experiment(lerobot_config.get_config()).data().makers()


def test_actions_come_back(makers):
    discs = next(m for m in makers if m.dataset.name == "discs")
    window = next(i for i in range(len(discs.windows)) if discs.windows[i] == (1, 20))
    trip = check_embodiment.round_trip(discs, window, discs(window, 0))
    np.testing.assert_array_equal(trip.recorded, discs.dataset.source[1].action[20:44])
    assert trip.starts == [0, 12]
    inside = np.abs(trip.normalised) < 1
    assert inside.mean() > 0.8
    np.testing.assert_allclose(trip.back[inside], trip.recorded[inside], atol=1e-5)
    last = next(i for i in range(len(discs.windows)) if discs.windows[i][0] == 3)  # 9 steps: 8 actions that are real
    assert len(check_embodiment.round_trip(discs, last, discs(last, 0)).recorded) == 8


def test_the_page_shows_every_dataset(makers):
    for maker in makers:
        section, fine = check_embodiment.check(maker.dataset, maker, 2)
        robot = maker.dataset.embodiment
        assert fine and maker.dataset.name in section and "data:image/png" in section
        assert section.count("data:image/svg+xml") == bool(robot.action)
        assert len(re.findall("<tr><td>", section)) == len(robot.action)
    assert "move the disc left" in section


def test_unreadable_recordings_are_told(tmp_path):
    """The first one, which the prompt would be taken from; then all."""
    shutil.copytree(lerobot_config.FIXTURE.replace("v30", "v21"), tmp_path / "v21")
    config = lerobot_config.get_config()
    del config.data.datasets["clips"]
    config.data.datasets.discs.path, config.data.max_bad_fraction = str(tmp_path / "v21"), 1.0
    [maker] = Experiment(config).data().makers()
    for episode in range(4):
        table_of(tmp_path / "v21", episode).unlink()
        section, fine = check_embodiment.check(maker.dataset, maker, 9)
        assert fine == (episode < 3) and f"Unreadable: {tmp_path}/v21/data/chunk-000/episode_000000.parquet" in section
        assert f"move the disc {('right', 'up', 'down')[episode]}" in section if episode < 3 else "move" not in section


def test_actions_that_do_not_come_back_are_told(makers, monkeypatch):
    units = check_embodiment.to_robot_units
    monkeypatch.setattr(check_embodiment, "to_robot_units", lambda *args: units(*args) + 0.01)
    assert not check_embodiment.check(makers[-1].dataset, makers[-1], 2)[1]


def test_a_mixture_of_nothing_makes_no_page(tmp_path, monkeypatch):
    config = lerobot_config.get_config()
    config.data.datasets = {}
    given = types.SimpleNamespace(config=config, out=str(tmp_path / "check.html"))
    monkeypatch.setattr(check_embodiment.flags, "FLAGS", given)
    with pytest.raises(ValueError, match="the mixture is empty"):
        check_embodiment.main([])
    assert not list(tmp_path.iterdir())
