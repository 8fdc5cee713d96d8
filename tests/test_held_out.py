"""Evaluation inside a run: the same windows and noise every time, and not a bit of the training is another."""

import json
import shutil

import numpy as np
import pytest

from launch import checkpoint as checkpoint_command
from launch import evaluate, precompute, train
from launch.setup import values
from launch.setup.experiment import Experiment
from launch.setup.restore import restore
from launch.supervision.ledger import account, read_attempts
from tests import tiny_run
from world_model.training import checkpoint

OWN = ("held_out/", "rollout/")




@pytest.fixture(scope="module")
def config(tmp_path_factory):
    c = tiny_run.config(tmp_path_factory.mktemp("pusht") / "data")
    c.checkpoint.update(every=2, keep_last=1, keep_every=0, keep_best=True)
    c.evaluate.update(every=2, rollout_every=4, windows=3, batch_size=2)
    c.mesh.update(data=2, fsdp=4)
    return c


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def measured(workdir):
    return [record for record in records(workdir) if any(name.startswith(OWN) for name in record)]


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train.train(Experiment(config), workdir)
    return workdir


def test_training_is_the_same_bit_for_bit_without_it(config, run, tmp_path):
    plain = config.copy_and_resolve_references()
    plain.evaluate.update(every=0, rollout_every=0)
    plain.checkpoint.keep_best = False
    train.train(Experiment(plain), tmp_path / "plain")
    assert not [one for one in checkpoint_command.diff(run, tmp_path / "plain", 4, 4) if not one.startswith("config.")]
    kept = ("step", "loss", "grad_norm", "video_loss", "action_loss")
    assert [[one[name] for name in kept] for one in records(run) if "loss" in one] == [
        [one[name] for name in kept] for one in records(tmp_path / "plain")]


def test_curves_of_each_dataset_and_of_what_is_rolled_out(run):
    first, last = measured(run)
    assert (first["step"], last["step"]) == (2, 4)
    assert not any(name.startswith("rollout/") for name in first)
    for name in ("held_out/pusht/loss", "held_out/pusht/action_loss", "held_out/pusht/video_loss", "held_out/loss",
                 "held_out/pusht/video_loss_sigma_0.50-0.75", "held_out/clips/video_loss"):
        assert first[name] > 0 and last[name] > 0 and first[name] != last[name], name
    assert "held_out/clips/action_loss" not in first  # there are no actions to be wrong about
    assert first["held_out/video_loss"] == pytest.approx(
        (first["held_out/pusht/video_loss"] + first["held_out/clips/video_loss"]) / 2)
    for name in ("video_psnr_db", "copy_last_psnr_db", "model_mse", "predict_mean_mse", "repeat_last_mse"):
        assert np.isfinite(last[f"rollout/{name}"]), name
    assert (run / "rollout" / "00000004.png").read_bytes().startswith(b"\x89PNG")
    spent = account(read_attempts(run / "goodput.jsonl"))
    assert spent["evaluate"] > 0


def test_a_run_resumed_in_the_middle_shows_the_same_curve(config, run, tmp_path):
    """It goes on from step 2, which it is not evaluated at again."""
    half = config.copy_and_resolve_references()
    half.checkpoint.keep_last = 2
    train.train(Experiment(half), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    train.train(Experiment(half), tmp_path)
    assert measured(tmp_path) == measured(run)


def test_it_measures_what_launch_evaluate_measures(config, run):
    """Its windows of the one robot are those that the command takes first."""
    restored = restore(run)
    found, _ = evaluate.evaluate(restored, say=lambda *_: None)
    last = measured(run)[-1]
    for name in ("video_loss", "action_loss"):
        assert last[f"held_out/pusht/{name}"] == pytest.approx(found["loss"][name], rel=1e-4)


def test_a_run_from_a_latent_cache_measures_the_videos(config, tmp_path):
    """At a rate of zero both runs have the same weights; the cache holds no held-out window."""
    still = config.copy_and_resolve_references()
    still.optimizer.learning_rate, still.train.steps = 0.0, 2
    train.train(Experiment(still), tmp_path / "video")
    job = precompute.Precompute(still, str(tmp_path / "latents"), shard_bytes=2**20, batch=8, worker=0, workers=1)
    assert job.run(lambda *_: None)
    still.data.cache = str(tmp_path / "latents")
    train.train(Experiment(still), tmp_path / "cached")
    assert measured(tmp_path / "cached") == measured(tmp_path / "video")
    assert records(tmp_path / "cached")[0]["loss"] != records(tmp_path / "video")[0]["loss"]  # of bfloat16 latents
    afterwards, _ = evaluate.evaluate(restore(tmp_path / "cached"), say=str)
    assert afterwards["loss"]["video_loss"] == pytest.approx(
        measured(tmp_path / "video")[-1]["held_out/pusht/video_loss"], rel=1e-4)


def test_the_best_checkpoint_stays(config, run, tmp_path):
    first, last = (one["held_out/loss"] for one in measured(run))
    best = 2 if first < last else 4
    assert set(checkpoint.steps(run / "checkpoints")) == {best, 4}


def test_best_needs_a_measure_at_each_save(config):
    other = config.copy_and_resolve_references()
    other.evaluate.every = 3
    with pytest.raises(values.ConfigError, match="checkpoint.keep_best: expected evaluate.every = 3 to divide "
                                                 "checkpoint.every = 2"):
        Experiment(other)


def test_a_dataset_without_held_out_windows_is_said_and_none_at_all_is_refused(config, tmp_path, capsys):
    other = config.copy_and_resolve_references()
    other.data.holdout = 0.0
    assert train.run(Experiment(other), tmp_path) == 1
    said = capsys.readouterr()
    assert "no episodes of clips, pusht are held out (data.holdout = 0.0):" in said.out
    assert "evaluate.every = 2, and data.holdout = 0.0 holds out no window of any dataset" in said.err


def test_where_only_rollouts_are_asked_for_no_other_windows_are_read(config, tmp_path, capsys):
    other = config.copy_and_resolve_references()
    other.data.holdout, other.evaluate.every, other.checkpoint.keep_best = 0.0, 0, False
    assert train.run(Experiment(other), tmp_path) == 1
    said = capsys.readouterr()
    assert "no held-out episodes with actions: raise data.holdout" in said.err and "held-out curve" not in said.out
