"""Weights that a run starts from (launch/setup/initial.py): what comes with them, and what is refused."""

import shutil

import numpy as np
import pytest

from launch import train
from launch.setup import initial
from tests import tiny_training as tiny
from world_model.training import checkpoint, checkpoint_reader


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run of 4 steps; its average is another than its weights, and its codec's scale is 0.5."""
    workdir = tmp_path_factory.mktemp("before")
    assert train.run(tiny.Experiment(tiny.config(steps=4)), workdir) == 0
    return workdir


def config_from(workdir, **train_keys):
    """A run of 2 steps at learning rate 0 from those weights."""
    config = tiny.config(steps=2, every=2)
    config.train.update(init_from=str(workdir), **train_keys)
    config.optimizer.learning_rate = 0.0
    return config


def params(workdir, step, kind):
    found = checkpoint_reader.read_arrays(workdir / "checkpoints", step, lambda name: name.startswith(f"{kind}."))
    return {name.partition(".")[2]: value for name, value in found}


@pytest.mark.parametrize("which, kind", [("average", "ema"), ("raw", "params")])
def test_weights_bring_their_encoders_and_say_which_they_are(before, tmp_path, capsys, which, kind):
    statistics = {"toy": {"q01": [0.0, 1.0], "q99": [2.0, 9.0]}}
    experiment = tiny.Experiment(config_from(before, init_weights=which), scale=0.9, statistics=statistics)
    assert train.run(experiment, tmp_path) == 0
    said = capsys.readouterr().out
    assert f"starts from the {which} weights of {before / 'checkpoints'}, step 4, with their encoders; 1 diff" in said
    assert "toy.q99 is [2.0, 3.0] in train.init_from, [2.0, 9.0] in this run" in said
    found, expected = params(tmp_path, 2, "params"), params(before, 4, kind)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert checkpoint_reader.read_frozen(tmp_path / "checkpoints", 2)["codec"]["scale"] == np.float32(0.5)


def test_raw_and_average_differ_here(before):
    raw, average = params(before, 4, "params"), params(before, 4, "ema")
    assert any((raw[name] != average[name]).any() for name in raw)


def test_a_seed_starts_from_weights_of_its_own(before, tmp_path, capsys):
    (tmp_path / "seed_3").symlink_to(before)
    config = config_from(tmp_path / "seed_{seed}")
    for seed, code in ((3, 0), (4, 1)):
        config.seed = seed
        assert train.run(tiny.Experiment(config), tmp_path / f"run_{seed}") == code
    assert "seed_4" in capsys.readouterr().err


def test_other_encoders_are_refused(before, tmp_path, capsys):
    config = config_from(before)
    config.encoders.video = "wan21"
    assert train.run(tiny.Experiment(config), tmp_path) == 1
    assert "trained with encoders.video = 'patch_pca', and this config has 'wan21'" in capsys.readouterr().err
    initial.check_encoders({"encoders": {"video": "wan21", "text": "features"}},
                           {"encoders": {"video": "wan21_latents", "text": "umt5", "image": "none"}}, "")


def test_an_encoder_is_not_fitted_anew_behind_trained_weights(tmp_path, monkeypatch, capsys):
    """As weights come that were imported without encoders."""
    with monkeypatch.context() as patch:
        patch.setattr(tiny.Experiment, "fit_encoders", lambda *_: {})
        patch.setattr(tiny.Experiment, "training_arrays", lambda *_: {"codec": {"scale": np.float32([0.5])}})
        assert train.run(tiny.Experiment(tiny.config(steps=1)), tmp_path / "before") == 0
    assert train.run(tiny.Experiment(config_from(tmp_path / "before")), tmp_path / "after") == 1
    assert "brings no codec encoder, and this run's would be fitted anew" in capsys.readouterr().err


def test_a_resumed_run_does_not_miss_the_folder_that_it_began_from(before, tmp_path, capsys):
    shutil.copytree(before, tmp_path / "base")
    meta = tmp_path / "base/checkpoints/4/meta/metadata"
    meta.write_text(meta.read_text().replace('"base": null', '"base": {"format": "wan", "base_hash": "aa"}'))
    config = config_from(tmp_path / "base")
    assert train.run(tiny.Experiment(config), tmp_path / "run") == 0
    shutil.rmtree(tmp_path / "base")
    config.train.steps = 3
    assert train.run(tiny.Experiment(config), tmp_path / "run") == 0
    assert checkpoint.read_json(tmp_path / "run/checkpoints", 3, "meta")["base"]["base_hash"] == "aa"
    config.train.init_from = str(before)  # which has no base
    assert train.run(tiny.Experiment(config), tmp_path / "run") == 1
    assert "checkpoint of a run from other weights" in capsys.readouterr().err
