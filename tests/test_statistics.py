"""Statistics against numpy on the raw arrays; scaling there and back; what cannot be normalised is named."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.episode import Episode
from data_pipelines.robots.normalisation import Scale, make_scale
from data_pipelines.statistics.compute import compute_statistics, mixture_statistics
from data_pipelines.statistics.published import against_published
from data_pipelines.statistics.stored import load_statistics, save_statistics, statistics_hash
from launch.setup.datasets import open_datasets
from launch.setup.experiment import Experiment
from tests import lerobot_config
from tests.fake_source import LAYOUT, ROBOT, FakeSource, clips, robots


def by_hand(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(all states, all actions of distinct blocks, relative where declared), by plain loops."""
    states, actions = [], []
    for index in range(len(dataset.source)):
        episode = dataset.source[index]
        states.extend(episode.state)
        last_start = max(0, episode.length - 33)  # 17 frames, 2 steps apart
        for block in sorted({s + b for s in range(last_start + 1) for b in (0, 16)}):
            for step in range(block, min(block + 16, episode.length - 1)):
                action = episode.action[step].copy()
                action[0] -= episode.state[block, 0]
                actions.append(action)
    return np.array(states), np.array(actions)


def test_statistics_equal_numpy_on_the_raw_arrays():
    dataset = robots(lengths=(40, 60, 20))
    for part, values in zip(("state", "action"), by_hand(dataset)):
        found = dataset.statistics[part]
        assert found["count"] == len(values)
        expected = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0),
                    "q01": np.quantile(values, 0.01, axis=0), "q99": np.quantile(values, 0.99, axis=0)}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=f"{part} {name}")


def test_statistics_read_the_chosen_episodes_and_no_frame():
    dataset = robots(lengths=(40, 60, 50))
    assert dataset.source.asked == []
    only = dataclasses.replace(dataset, episodes=np.array([0, 2]))
    assert compute_statistics(only, LAYOUT)["state"]["count"] == 90


def test_unusable_episodes_are_named():
    statistics = robots(lengths=(40, 60, 50), unreadable=(1,)).statistics
    assert statistics["episodes"] == 2 and "torn file" in statistics["skipped"]["fake/1"]
    with pytest.raises(ValueError, match=r"'fake': no state in 2 episodes; skipped: .*torn file"):
        robots(lengths=(40, 60), unreadable=(0, 1))


def test_too_many_unusable_episodes_are_fatal_with_their_list():
    source = FakeSource([40] * 50, unreadable=(3, 7, 11, 19))
    dataset = Dataset("fake", source, ROBOT)
    named = r"4 of 50 episodes are unreadable, more than data.max_bad_fraction = 0.001:\n.*fake/3: .*torn.*(\n.*){3}fake/19"
    with pytest.raises(ValueError, match=named):
        compute_statistics(dataset, LAYOUT)
    assert len(compute_statistics(dataset, LAYOUT, max_bad_fraction=0.08)["skipped"]) == 4
    with pytest.raises(ValueError, match="1 of 50 episodes .* = 0:"):
        compute_statistics(dataclasses.replace(dataset, source=FakeSource([40] * 50, unreadable=(7,))), LAYOUT,
                           max_bad_fraction=0)


def test_clips_have_no_statistics():
    statistics = compute_statistics(clips(), LAYOUT)
    assert statistics["state"] is None and statistics["action"] is None


def test_json_round_trip_keeps_the_hash(tmp_path):
    statistics = {"fake": robots().statistics}
    path = str(tmp_path / "statistics.json")
    save_statistics(statistics, path)
    assert load_statistics(path) == statistics
    assert statistics_hash(load_statistics(path)) == statistics_hash(statistics)
    other = copy.deepcopy(statistics)
    other["fake"]["action"]["q01"][0] = np.nextafter(other["fake"]["action"]["q01"][0], 1)
    assert statistics_hash(other) != statistics_hash(statistics)


def test_scale_round_trip_and_clip():
    scale = Scale(np.array([-1.0, 10.0, 5.0]), np.array([4.0, 2.0, 0.0]))
    values = np.array([[-1.0, 12.0, 5.0], [1.0, 11.5, 5.0]])
    normalised = scale.normalise(values)
    np.testing.assert_allclose(normalised, [[-1, 1, 0], [0, 0.5, 0]])
    np.testing.assert_allclose(scale.denormalise(normalised), values)
    np.testing.assert_array_equal(scale.normalise(np.array([-9.0, 99.0, 7.0])), [-1, 1, 0])


def test_quantiles_land_on_plus_and_minus_one():
    statistics = robots().statistics
    scale = make_scale(statistics, ROBOT, "action")
    np.testing.assert_allclose(scale.normalise(np.array(statistics["action"]["q01"])), -1, atol=1e-6)
    np.testing.assert_allclose(scale.normalise(np.array(statistics["action"]["q99"])), 1, atol=1e-6)
    full = make_scale(statistics, dataclasses.replace(ROBOT, normalisation="min_max"), "action")
    np.testing.assert_allclose(full.denormalise(np.ones(2)), statistics["action"]["max"])


class StillSource(FakeSource):
    """The second action dimension never moves."""

    def __getitem__(self, index: int) -> Episode:
        episode = super().__getitem__(index)
        episode.action[:, 1] = 0.25
        return episode


class RareSource(FakeSource):
    """The gripper closes in one step of a hundred; x stands still."""

    def __getitem__(self, index: int) -> Episode:
        episode = super().__getitem__(index)
        episode.action[:, 1] = 0
        episode.action[7, 1] = 1
        return episode


def test_a_dimension_that_moves_rarely_is_not_to_be_dropped():
    rare = Dataset("rare", RareSource([400, 600]), ROBOT)
    with pytest.raises(ValueError, match=r"'grip' has no range: 0 to 0. Rare movements of 'grip' \(0 to 1\) lie outside of "
                                         r"the quantiles: embodiment 'fake' should declare normalisation=\"min_max\"") as error:
        compute_statistics(rare, LAYOUT)
    assert "constant" not in str(error.value)
    whole = dataclasses.replace(ROBOT, normalisation="min_max")
    scale = make_scale(compute_statistics(dataclasses.replace(rare, embodiment=whole), LAYOUT), whole, "action")
    assert scale.normalise(np.array([0.0, 1.0]))[1] == 1


def test_numbers_that_no_window_uses_cost_nothing():
    class Spoiled(FakeSource):
        def __getitem__(self, index: int) -> Episode:
            episode = super().__getitem__(index)
            episode.action[-1] = np.nan
            if index == 1:
                episode.action[3, 0] = np.inf
            return episode

    sources = [Dataset("d", kind([60, 60, 50]), ROBOT) for kind in (FakeSource, Spoiled)]
    known = compute_statistics(dataclasses.replace(sources[0], episodes=np.array([0, 2])), LAYOUT)
    found = compute_statistics(sources[1], LAYOUT)
    assert found["skipped"] == {"d/1": "fake episode 1: action 'dx' is inf at step 3"} and found["episodes"] == 2
    assert found["action"] == known["action"] and found["state"] == known["state"]


def test_a_dimension_without_range_is_named_unless_declared_constant():
    still = Dataset("still", StillSource([40, 60]), ROBOT)
    named = r"'still': action dimension 'grip' has no range: 0.25 to 0.25.*constant=True"
    with pytest.raises(ValueError, match=named):
        compute_statistics(still, LAYOUT)
    dims = (ROBOT.action[0], dataclasses.replace(ROBOT.action[1], constant=True))
    robot = dataclasses.replace(ROBOT, action=dims)
    still = dataclasses.replace(still, embodiment=robot)
    scale = make_scale(compute_statistics(still, LAYOUT), robot, "action")
    normalised = scale.normalise(np.array([3.0, 0.25]))
    assert normalised[1] == 0 and scale.denormalise(normalised)[1] == 0.25


@pytest.mark.parametrize("break_it, named", [
    (lambda s: s["action"].pop("q99"), "'fake': action has no 'q99'"),
    (lambda s: s.pop("action"), "'fake': action has no 'q01'"),
    (lambda s: s["action"]["q01"].pop(), r"'q01': expected 2 dimensions, found shape \(1,\)"),
    (lambda s: s["action"]["q01"].__setitem__(1, float("nan")), "'q01' of dimension 'grip' is nan"),
])
def test_broken_statistics_are_named(break_it, named):
    statistics = copy.deepcopy(robots().statistics)
    break_it(statistics)
    with pytest.raises(ValueError, match=named):
        make_scale(statistics, ROBOT, "action")


def test_datasets_of_one_robot_can_share_statistics():
    a, b = robots(lengths=(40, 60)), robots(lengths=(80, 50), name="other")
    both = np.concatenate([by_hand(a)[1], by_hand(b)[1]])
    found = mixture_statistics([a, b, clips()], LAYOUT, "embodiment")
    assert found["fake"] == found["other"] and found["fake"]["dataset"] == "fake + other"
    assert found["fake"]["episodes"] == 4 and found["clips"]["action"] is None
    np.testing.assert_allclose(found["fake"]["action"]["q99"], np.quantile(both, 0.99, axis=0), rtol=1e-5)
    apart = mixture_statistics([a, b], LAYOUT, "dataset")
    assert apart == {"fake": a.statistics, "other": b.statistics}
    with pytest.raises(ValueError, match="data.statistics_per = 'robot': expected one of"):
        mixture_statistics([a], LAYOUT, "robot")


def test_absolute_actions_are_counted_beside_relative_ones():
    dataset = robots(lengths=(40, 60))
    raw = np.concatenate([dataset.source[i].action for i in range(2)])
    np.testing.assert_allclose(dataset.statistics["absolute_action"]["mean"], raw.mean(0), rtol=1e-6)
    assert dataset.statistics["absolute_action"]["count"] == 100
    # the second dimension is absolute already, and its blocks overlap: the same range, other counts
    assert dataset.statistics["action"]["max"][1] == dataset.statistics["absolute_action"]["max"][1]


class Counted(FakeSource):
    """Counts what is opened; fails at one episode until it is told to go on."""

    opened, stop_at = 0, None

    def __getitem__(self, index: int) -> Episode:
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.opened += 1
        return super().__getitem__(index)


def test_an_interrupted_count_goes_on(tmp_path):
    source = Counted([40 + i % 7 for i in range(64)], unreadable=(5,))
    dataset = Dataset("fake", source, ROBOT)
    expected = compute_statistics(dataset, LAYOUT)
    source.stop_at = 63
    with pytest.raises(KeyboardInterrupt):
        compute_statistics(dataset, LAYOUT, str(tmp_path / "parts"))
    kept = len(list((tmp_path / "parts").glob("*.safetensors")))
    assert kept == 15  # of 16 shares
    source.stop_at, source.opened = None, 0
    assert compute_statistics(dataset, LAYOUT, str(tmp_path / "parts")) == expected and source.opened == 4 + 1
    other = dataclasses.replace(dataset, episodes=np.arange(32))
    assert compute_statistics(other, LAYOUT, str(tmp_path / "parts")) == compute_statistics(other, LAYOUT)


def test_an_episode_that_was_put_right_since_an_earlier_start_is_counted(tmp_path):
    source = FakeSource([40] * 64, unreadable=(5, 9))
    dataset = Dataset("fake", source, ROBOT)
    with pytest.raises(ValueError, match="2 of 64 episodes are unreadable"):
        compute_statistics(dataset, LAYOUT, str(tmp_path / "parts"), max_bad_fraction=0)
    source.unreadable = ()
    found = compute_statistics(dataset, LAYOUT, str(tmp_path / "parts"), max_bad_fraction=0)
    assert found == compute_statistics(dataset, LAYOUT) and found["episodes"] == 64


def test_a_datasets_own_statistics_are_compared(tmp_path):
    """lerobot's meta/stats.json says what we count, until it is of other data."""
    config = lerobot_config.get_config()
    path = config.data.datasets.discs.path = str(tmp_path / "discs")
    shutil.copytree(lerobot_config.FIXTURE, path)

    def opened() -> Dataset:
        return next(dataset for dataset, _ in open_datasets(Experiment(config)) if dataset.name == "discs")

    dataset = opened()
    counted = compute_statistics(dataset, Experiment(config).layout)
    assert against_published(dataset, counted) == []
    file = tmp_path / "discs/meta/stats.json"
    stats = json.loads(file.read_text())
    stats["observation.state"]["max"][1] -= 0.5
    stats["action"]["mean"][2] += stats["action"]["std"][2]
    file.write_text(json.dumps(stats))
    state, action = against_published(opened(), counted)
    assert state.startswith(f"state {dataset.embodiment.state[1].name}: ") and "meta/stats.json says" in state
    assert action.startswith(f"action {dataset.embodiment.action[2].name}: mean ")
    assert against_published(robots(), compute_statistics(robots(), LAYOUT)) == []
