"""Filters: which recordings, and which of their steps windows begin at; files that do not fit are named."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.loader import Loader
from data_pipelines.samples import SampleMaker
from data_pipelines.sources import make_source
from data_pipelines.sources.filters import Filters, matches, read_keep
from data_pipelines.statistics.compute import compute_statistics
from launch.setup.datasets import open_datasets
from launch.setup.experiment import Experiment
from tests import lerobot_config
from tests.fake_source import BATCH, LAYOUT, ROBOT, FakeSource, robots, tokenize
from tests.lerobot_files import FIELDS, FIXTURES, LENGTHS

ALL = np.ones(4, np.bool_)
NAMES = [str(i) for i in range(4)]


def write(file, content) -> str:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def test_ranges_and_excluded_steps_say_the_same(tmp_path):
    lengths = np.array([5, 8, 6, 3])
    ranges = write(tmp_path / "keep.json", {"0": [[0, 5]], "1": [[1, 3], [6, 8]], "3": [[0, 3]]})
    steps = [{"episode_index": 1, "step_indices": [0, 3, 4, 5]}, {"episode_index": 2, "step_indices": [*range(6)]}]
    excluded = write(tmp_path / "step_filter.jsonl", "".join(json.dumps(line) + "\n" for line in steps))
    expected = [[0, 0, 5], [1, 1, 3], [1, 6, 8], [3, 0, 3]]
    for keep in (ranges, excluded):
        assert Filters(keep=keep).stretches(lengths, ALL, NAMES).tolist() == expected
    chosen = np.array([False, True, True, True])
    assert Filters(keep=ranges).stretches(lengths, chosen, NAMES).tolist() == expected[1:]
    assert Filters().stretches(lengths, chosen, NAMES).tolist() == [[1, 0, 8], [2, 0, 6], [3, 0, 3]]


@pytest.mark.parametrize("name, content, named", [
    ("keep.json", {"0": [[0, 6]]}, "episode '0': range 0 to 6 .* its 5 steps .* belongs to another version"),
    ("keep.json", {"0": [[0, 3], [2, 4]]}, "range 2 to 4 after step 3"), ("keep.json", {"0": [[3, 3]]}, "range 3 to 3"),
    ("keep.json", {"0": [[-1, 3]]}, "range -1 to 3"), ("keep.json", {"droid-7": [[0, 3]]}, "names none of the 4 episodes"),
    ("keep.json", "{", "keep.json is not JSON"), ("keep.json", [1], r"keep.json = \[1\]: expected a map"),
    ("keep.json", {"0": [4]}, r"keep.json: 0\[0\] = 4: expected a list of 2"), ("f.jsonl", '{"episode_index": 0}\n', "f.jsonl line 1 has no 'step_indices'"),
    ("f.jsonl", '{"episode_index": 0, "step_indices": [5]}\n', "episode '0': step 5 of 5"),
])
def test_keep_files_that_do_not_fit_are_named(tmp_path, name, content, named):
    with pytest.raises(ValueError, match=named):
        Filters(keep=write(tmp_path / name, content)).stretches(np.array([5, 8, 6, 3]), ALL, NAMES)


def test_an_unreadable_recording_stays_to_be_reported(tmp_path):
    keep = read_keep(write(tmp_path / "keep.json", {"a": [[20, 90]]}))
    assert keep.of("a", 1) == [(0, 1)] and keep.of("b", 1) == []


def test_texts_are_patterns():
    assert matches("lab/success/7", "*/success/*") and not matches("lab/failure/7", "*/success/*")
    assert matches(True, True) and not matches(None, True) and not matches(None, "*") and matches(3, 3)


def test_windows_begin_in_kept_stretches_and_reach_past_them():
    source = FakeSource([60, 50, 40], stretches_=[[0, 4, 12], [0, 20, 23], [0, 40, 60], [2, 0, 40]])
    dataset = Dataset("fake", source, ROBOT, window_stride=3)
    dataset = dataclasses.replace(dataset, statistics=compute_statistics(dataset, LAYOUT))
    maker = SampleMaker(dataset, 0, LAYOUT, tokenize, fields=BATCH)
    found = [maker.windows[i] for i in range(len(maker.windows))]
    # windows take 33 steps: 27 is the last start of episode 0, so that nothing of steps 40 to 60 can begin one
    assert found == [(0, 4), (0, 7), (0, 10), (0, 11), (0, 20), (0, 22), (2, 0), (2, 3), (2, 6), (2, 7)]
    assert maker.windows.episodes.tolist() == [0, 2]
    np.testing.assert_array_equal(maker(4, 0)["video"][:, 0, 0, 0], 20 + 2 * np.arange(17))
    state = dataset.statistics["state"]
    assert state["count"] == (44 - 4) + (55 - 20) + 40 and state["min"][0] == 0 and state["max"][0] == 54
    with Loader([dataset], LAYOUT, tokenize, fields=BATCH, seed=0, global_batch_size=5) as loader:
        drawn = [w for _ in range(2) for b in [next(loader)] for w in zip(b["episode_index"].tolist(), b["start"].tolist())]
    assert sorted(drawn) == found


def test_nothing_left_is_named():
    dataset = dataclasses.replace(robots(), source=FakeSource([50], stretches_=[[0, 40, 50]]))
    with pytest.raises(ValueError, match="none of its 1 kept stretches begins early enough for a window of 33 steps"):
        SampleMaker(dataset, 0, LAYOUT, tokenize, fields=BATCH)


@pytest.mark.parametrize("version", ["lerobot_v21", "lerobot_v30"])
def test_lerobot_by_episode_index_and_language(version, tmp_path):
    keep = write(tmp_path / "keep.json", {"0": [[3, 9]], "3": [[0, 9]]})
    source = make_source("lerobot", "discs", path=str(FIXTURES / version), keep=keep, **FIELDS)
    assert source.stretches().tolist() == [[0, 3, 9], [3, 0, 9]] and len(source) == 4
    described = make_source("lerobot", "discs", path=str(FIXTURES / version), described=True, **FIELDS)
    assert described.stretches().tolist() == [[i, 0, n] for i, n in enumerate(LENGTHS)]


def test_lerobot_without_language(tmp_path):
    import shutil

    shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "v21")
    for name in ("tasks.jsonl", "episodes.jsonl"):
        file = tmp_path / "v21/meta" / name
        file.write_text(file.read_text().replace("move the disc right", "not provided"))
    options = {"path": str(tmp_path / "v21"), "described": True, **FIELDS}
    assert make_source("lerobot", "discs", **options).stretches()[:, 0].tolist() == [0, 2, 3]
    file = tmp_path / "v21/meta/episodes.jsonl"
    file.write_text("".join(json.dumps({k: v for k, v in json.loads(line).items() if k != "tasks"}) + "\n"
                            for line in file.read_text().splitlines()))
    assert make_source("lerobot", "discs", **options).stretches()[:, 0].tolist() == [0, 2, 3]  # from the tables


def test_filters_neither_renumber_nor_move_held_out_episodes(tmp_path):
    config = lerobot_config.get_config()
    config.data.holdout = 0.3
    whole = open_datasets(Experiment(config))
    keep = write(tmp_path / "keep.json", {"0": [[0, 5]], "1": [[0, 5]], "2": [[0, 5]]})
    config.data.datasets.discs.keep = keep
    filtered = open_datasets(Experiment(config))

    def sides(parts: list) -> dict[str, tuple[set, set]]:
        return {d.name: (set(d.episodes.tolist()), set(held.tolist())) for d, held in parts}

    assert sides(whole)["discs"] == sides(whole)["clips"]  # the same recordings, as a robot's and as clips
    for before, after in zip(sides(whole)["discs"], sides(filtered)["discs"]):
        assert after == before - {3} or len(after) == 1
