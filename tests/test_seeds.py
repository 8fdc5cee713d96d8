"""launch.train --seeds: several runs in one program, each as it would be alone."""

import json
import os
import signal
from unittest import mock

import jax
import numpy as np
import pytest

from launch import train
from launch.setup import training
from tests import tiny_training as tiny
from world_model.training import checkpoint, checkpoint_reader

SEEDS = (0, 3)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two seeds at once, each over a device of its own."""
    workdir = tmp_path_factory.mktemp("together")
    assert train.run(tiny.Experiment(tiny.config(steps=6)), workdir, SEEDS) == 0
    return workdir


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same, one after the other, each on one device."""
    workdir, make_mesh = tmp_path_factory.mktemp("alone"), training.make_mesh
    for seed in SEEDS:
        with mock.patch.object(training, "make_mesh", lambda config, _: make_mesh(config, jax.devices()[:1])):
            assert train.run(tiny.Experiment(tiny.config(steps=6, fsdp=1)).with_seed(seed), workdir / f"seed_{seed}") == 0
    return workdir


def state_of(workdir, step: int) -> dict:
    experiment = tiny.Experiment(tiny.config(steps=6, fsdp=1))
    _, target = training.make_target(experiment, training.make_mesh(experiment.config, jax.devices()[:1]))
    return checkpoint_reader.restore(workdir / "checkpoints", step, target)


def history(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("seed", SEEDS)
def test_each_run_is_what_it_is_alone(together, alone, seed):
    """A matrix product over stacked runs adds in another order, so that they agree to float32's rounding, grown over
    six steps; two seeds differ a thousand times as much."""
    one, other = together / f"seed_{seed}", alone / f"seed_{seed}"
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    assert checkpoint.steps(one / "checkpoints") == checkpoint.steps(other / "checkpoints") == [4, 6]
    assert checkpoint.read_json(one / "checkpoints", 6, "data") == checkpoint.read_json(other / "checkpoints", 6, "data")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), state_of(one, 6), state_of(other, 6))
    for a, b in zip(history(one), history(other), strict=True):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert json.loads((one / "config.json").read_text())["seed"] == seed


def test_seeds_are_not_each_other(together):
    params = [state_of(together / f"seed_{seed}", 6)["params"]["embed.kernel"] for seed in SEEDS]
    assert np.abs(params[0] - params[1]).max() > 2e-3


def test_a_run_that_diverges_leaves_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    """The sixth batch of seed 3 is spoilt. Seed 0 ends; started again, seed 3 goes on alone."""
    plain = tiny.Loader.__next__

    def spoilt(loader):
        batch = plain(loader)
        if loader.seed == 3 and loader.step == 6:
            batch["x"][0, 0, 0] = np.nan
        return batch

    monkeypatch.setattr(tiny.Loader, "__next__", spoilt)
    assert train.run(tiny.Experiment(tiny.config(steps=6)), tmp_path, SEEDS) == 1
    error = capsys.readouterr().err
    assert "loss is nan at step 6" in error and f"last good checkpoint: step 4 in {tmp_path / 'seed_3'}" in error
    assert [checkpoint.steps(tmp_path / f"seed_{seed}" / "checkpoints") for seed in SEEDS] == [[4, 6], [4]]
    monkeypatch.undo()
    assert train.run(tiny.Experiment(tiny.config(steps=6)), tmp_path, SEEDS) == 1
    assert "these stand at others: seed_0 at 6, seed_3 at 4; start those apart" in capsys.readouterr().err


def test_a_signal_saves_all_and_all_go_on_from_there(tmp_path, monkeypatch, together, capsys):
    plain = tiny.Loader.__next__

    def terminated_at_3(loader):
        if loader.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(loader)

    monkeypatch.setattr(tiny.Loader, "__next__", terminated_at_3)
    assert train.run(tiny.Experiment(tiny.config(steps=6)), tmp_path, SEEDS) == 143
    assert [checkpoint.steps(tmp_path / f"seed_{seed}" / "checkpoints") for seed in SEEDS] == [[3], [3]]
    monkeypatch.undo()
    assert train.run(tiny.Experiment(tiny.config(steps=6)), tmp_path, SEEDS) == 0
    assert "seed_3: resuming from step 3" in capsys.readouterr().out
    for seed in SEEDS:
        jax.tree.map(np.testing.assert_array_equal, *(state_of(at / f"seed_{seed}", 6) for at in (tmp_path, together)))
