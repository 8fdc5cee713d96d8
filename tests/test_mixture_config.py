"""Groups, schedules and sizes in data.datasets."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.dataset import Dataset
from data_pipelines.mixture import asked_fractions
from launch.setup import mixture
from launch.setup.datasets import open_datasets
from launch.setup.experiment import Experiment
from launch.setup.provenance import as_json
from tests import lerobot_config
from tests.fake_source import FakeSource


def config(**groups) -> ConfigDict:
    return ConfigDict(groups)


def test_groups_share_what_they_are_given():
    datasets = config(robots={"weight": 3.0, "datasets": {"a": {"weight": 2.0}, "b": {"weight": 1.0}}},
                      clips={"weight": 1.0})
    sizes = {"a": 10, "b": 1000, "clips": 100}
    assert sorted(mixture.entries(datasets)) == ["a", "b", "clips"]
    assert mixture.weights(datasets, sizes, 0.0) == {"a": 2.0, "b": 1.0, "clips": 1.0}
    shares = mixture.weights(datasets, sizes, 1.0)
    np.testing.assert_allclose([shares["a"], shares["b"], shares["clips"]], [3 * 20 / 1020, 3 * 1000 / 1020, 100])
    flat = config(a={"weight": 1.0}, b={"weight": 1.0})
    assert asked_fractions(mixture.weights(flat, sizes, 0.5), 1)["b"] == pytest.approx(10 / 11)


def test_a_group_may_change_over_steps_but_not_its_inside():
    datasets = config(robots={"weight": ((0, 1.0), (9, 4.0)), "datasets": {"a": {"weight": 1.0}, "b": {"weight": 3.0}}})
    assert mixture.weights(datasets, {"a": 1, "b": 1}, 0.0) == {"a": ((0, 0.25), (9, 1.0)), "b": ((0, 0.75), (9, 3.0))}
    datasets = config(robots={"weight": 1.0, "datasets": {"a": {"weight": ((0, 1.0),)}, "b": {"weight": 3.0}}})
    with pytest.raises(ValueError, match="dataset 'a': its weight in group 'robots' changes over steps"):
        mixture.weights(datasets, {"a": 1, "b": 1}, 0.0)
    with pytest.raises(ValueError, match="dataset 'a' is in the mixture twice"):
        mixture.entries(config(a={"weight": 1.0}, robots={"weight": 1.0, "datasets": {"a": {"weight": 1.0}}}))


def test_a_nested_mixture_is_drawn_as_asked(tmp_path):
    nested, flat = lerobot_config.get_config(), lerobot_config.get_config()
    nested.data.datasets = ConfigDict({"all": {"weight": 5.0, "datasets": flat.data.datasets.to_dict()}})
    rows = []
    for each in (nested, flat):
        with Experiment(each).data().loader() as loader:
            rows.append([next(loader)["start"].tolist() for _ in range(4)])
            assert loader.state()["positions"] == {"clips": 8, "discs": 24}
    assert rows[0] == rows[1]
    nested.data.size_exponent = 1.0
    with Experiment(nested).data().loader() as loader:  # 31 and 67 windows, weighed 1 and 3
        for _ in range(4):
            next(loader)
        assert abs(loader.state()["positions"]["clips"] - 32 * 31 / (31 + 3 * 67)) < 1


def test_shares_of_tokens(tmp_path):
    counted = lerobot_config.get_config()
    counted.data.unit = "tokens"
    layout, per_frame = Experiment(counted).layout, 5
    parts = {dataset.name: dataset for dataset, _ in open_datasets(Experiment(counted))}
    assert Experiment(counted).model.spec.tokens_per_frame == 12  # 48 x 64 pixels, 6 x 8 latent ones, patches of 2 x 2
    whole = FakeSource([100], rate=15.0)
    robot, clip = parts["discs"].embodiment, parts["clips"].embodiment
    assert mixture.tokens_of(Dataset("d", whole, robot), layout, per_frame) == 15 + 24 + 2
    assert mixture.tokens_of(Dataset("c", whole, clip), layout, per_frame) == 15
    short = FakeSource([9], rate=15.0)  # frames 0, 3 and 6, and eight actions: two latent frames
    assert mixture.tokens_of(Dataset("d", short, robot), layout, per_frame) == 10 + 8 + 2
    drawn = {name: dataset.weight * mixture.tokens_of(dataset, layout, 12) for name, dataset in parts.items()}
    assert drawn["discs"] / drawn["clips"] == pytest.approx(3.0)
    assert parts["discs"].weight / parts["clips"].weight < 2.5
    counted.data.unit = "bytes"
    with pytest.raises(ValueError, match="data.unit = 'bytes': expected one of windows, tokens"):
        open_datasets(Experiment(counted))


@pytest.mark.parametrize("changes, named", [
    ({"where": {"tasks": "*nowhere"}}, r"dataset 'discs': {'where': {'tasks': '\*nowhere'}} leaves none of its 4 recordings"),
    ({"where": {"tasks": "*nowhere"}, "described": True}, "'described': True.* leaves none of its 4 recordings")])
@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_filters_that_leave_nothing_are_named(changes, named, holdout):
    changed = lerobot_config.get_config()
    changed.data.holdout = holdout
    changed.data.datasets.discs.update(ConfigDict(changes))
    with pytest.raises(ValueError, match=named):
        open_datasets(Experiment(changed))


@pytest.mark.parametrize("changes, named", [
    ({"statee": "x"}, "dataset 'discs', source 'lerobot': key = 'statee' is unknown; did you mean 'state'"),
    ({"images": None}, "dataset 'discs': source 'lerobot' needs 'images'"),
    *[({key: None}, f"dataset 'discs': its entry in data.datasets has no {key!r}; every one has") for key in mixture.REQUIRED],
])
def test_keys_of_an_entry_that_are_missing_or_unknown_are_named(changes, named):
    c = lerobot_config.get_config()
    with c.unlocked():
        for key, value in changes.items():
            c.data.datasets.discs[key] = value
            if value is None:
                del c.data.datasets.discs[key]
        with pytest.raises(ValueError, match=named):
            open_datasets(Experiment(c))
        as_json(c)  # a command asks for it first
        c.data.datasets = ConfigDict({"discs": "lerobot"})
    with pytest.raises(ValueError, match="dataset 'discs' is 'lerobot': expected a map of source, path"):
        open_datasets(Experiment(c))
