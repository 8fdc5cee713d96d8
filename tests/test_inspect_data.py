"""The page about a mixture: what it says is so, and what is wrong with cameras and files is said."""

import dataclasses
import re
import shutil
import types

import numpy as np
import pytest

from launch import inspect_data
from launch.reporting import data_figures, data_speed
from launch.setup.experiment import Experiment
from tests import lerobot_config
from tests.lerobot_files import change_column, table_of


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
    clips, discs = Experiment(config).data().makers()
    page, problems = inspect_data.section(discs, 20, 0.75, 0.751)
    assert "cameras 'exterior_1' and 'exterior_2' show the same, in 3 of 4 sampled episodes" in str(problems)
    assert "episode_000003.mp4: the file is empty, in 1 of 4 sampled episodes" in str(problems)
    for said in ("droid, 8 state and 8 action dimensions", "4; 9 to 61 steps, median 38", "<td>67, every 1 steps</td>",
                 "75.00%, 75.10%", "4 among 4 sampled episodes", "move the disc left", "15 Hz", "show the same"):
        assert said in page, said
    assert page.count("data:image/png") == page.count("data:image/svg+xml") == 1
    page, problems = inspect_data.section(clips, 20, 0.25, 0.249)
    assert not problems and "data:image/svg+xml" not in page


def test_a_missing_view_a_changing_task_and_a_shifted_video_are_told(config, tmp_path):
    del config.data.datasets.discs.images["wrist"]
    config.data.datasets.clips.images.image = "observation.images.wrist"
    change_column(table_of(tmp_path / "v21", 1), "task_index", lambda v: [*v[:20], *[3] * 41])
    change_column(table_of(tmp_path / "v21", 2), "timestamp", lambda v: [t + 0.05 for t in v])
    clips, discs = Experiment(config).data().makers()
    _, problems = inspect_data.section(discs, 20, 0.75, 0.751)
    assert "discs episode 0 has no view ['wrist']; it has ['exterior_1', 'exterior_2']" in problems
    page, problems = inspect_data.section(clips, 20, 0.25, 0.249)
    assert "0.050 s, or 0.8 steps, off its frame's" in str(problems) and "in 1 of 4 sampled episodes" in str(problems)
    assert "move the disc down" in page and "move the disc right" in page


def test_numbers_that_are_none_do_not_end_the_page(config, tmp_path):
    change_column(table_of(tmp_path / "v21", 1), "action", lambda v: [*v[:-1], [float("nan")] * 8])
    [_, discs] = Experiment(config).data().makers()
    page, problems = inspect_data.section(discs, 20, 0.75, 0.751)
    assert page.count("data:image/svg+xml") == 1 and "nan" not in str(problems)


def test_a_batchs_episodes_are_counted(config, tmp_path):
    data = Experiment(config).data()
    said = data_speed.diversity(data, data.makers(), batches=5)
    with data.loader() as loader:
        counts = [len(set(zip(batch["dataset_id"].tolist(), batch["episode_index"].tolist())))
                  for batch in (next(loader) for _ in range(5))]
    assert f"of 8 holds windows of {np.mean(counts):.1f} different episodes on average, of {min(counts)} at least" in said


def test_camera_faults():
    rng = np.random.default_rng(0)
    moving = rng.integers(0, 255, (3, 8, 8, 3), np.uint8)
    faults = inspect_data.camera_faults({"a": moving, "b": moving.copy(), "c": moving[:1].repeat(3, 0),
                                         "d": rng.integers(0, 255, (3, 4, 4, 3), np.uint8)})
    assert faults == ["camera 'c' is frozen", "cameras 'a' and 'b' show the same"]


def test_the_loader_alone_is_timed(config, tmp_path):
    rate, lines = data_speed.speed(Experiment(config).data(), seconds=0.5)
    assert rate > 0 and f"{rate:.2f} windows per second here" in lines[0] and len(lines) == 2
    share = int(re.search(r"frames takes (\d+)% of the time", lines[1])[1])
    assert 10 < share < 100


def test_time_stamps_and_letters_are_told(config, tmp_path):
    [_, discs] = Experiment(config).data().makers()
    episodes, _ = inspect_data.sampled_episodes(discs.dataset, discs.windows.episodes, 20)
    assert "at most 0.00 ms off an even rate" in inspect_data.drift(episodes)
    late = [dataclasses.replace(episode, drift=0.004) for episode in episodes]
    assert "at most 4.00 ms off an even rate, 6.0% of a step" in inspect_data.drift(late)
    assert inspect_data.drift([dataclasses.replace(episodes[0], drift=None)]).startswith("none recorded")
    assert inspect_data.scripts(["move 2 discs", "\u628a"]) == ["Latin", "Cjk"]


def test_what_a_slice_would_ask_for(config, monkeypatch):
    from launch import plan

    monkeypatch.setattr(plan, "plan", lambda *_: {"global_batch": 128, "step_seconds": 4.0, "run": "planned, not run"})
    devices = [types.SimpleNamespace(process_index=i // 4) for i in range(64)]
    monkeypatch.setattr(plan, "describe_topology", lambda *_: (None, devices))
    said = inspect_data.demand(config, "v5p:4x4x4", 1, 3.0)
    assert "32.00 windows per second, 2.00 on each of its 16 hosts; this host's loader makes 3.00: enough" in said
    assert "too little" in inspect_data.demand(config, "v5p:4x4x4", 1, 1.0)


def test_pictures_of_a_sample_are_frames_of_its_video_or_its_cameras():
    video, views = (np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8) for n in (17, 3))
    assert data_figures.pictures({"video": video})[:, 0, 0, 0].tolist() == [0, 4, 8, 12, 16]
    np.testing.assert_array_equal(data_figures.pictures({"views": views, "view_mask": [True] * 3}), views)
