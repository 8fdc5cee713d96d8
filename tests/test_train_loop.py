"""launch/train.py in this process: the loop, its ends, and what it refuses. test_resume.py kills it from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import jax
import numpy as np
import pytest

from launch import checkpoint as command
from launch import train
from launch.setup import flags, resume, steps
from launch.supervision import cloud_ledger, owner
from tests import tiny_training as tiny
from world_model.training import checkpoint, checkpoint_reader


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 6 steps with checkpoints at 4 and 6."""
    workdir = tmp_path_factory.mktemp("finished")
    train.train(tiny.Experiment(tiny.config(steps=6, fsdp=8)), workdir)
    return workdir


def history(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_checkpoints_metrics_and_its_config(finished):
    assert checkpoint.steps(finished / "checkpoints") == [4, 6]
    records = history(finished)
    assert [record["step"] for record in records] == [2, 4, 6]
    assert {"loss", "video_loss", "action_loss", "low_noise", "grad_norm", "learning_rate", "param_norm",
            "samples_per_second", "tflops_per_device", "data_wait", "seconds_left"} <= records[0].keys()
    config = json.loads((finished / "config.json").read_text())
    assert config["train"]["steps"] == 6
    meta = checkpoint.read_json(finished / "checkpoints", 6, "meta")
    assert meta["config"] == config and meta["statistics"]["toy"] and meta["family"] == "tiny" and meta["code_version"]
    assert checkpoint.read_json(finished / "checkpoints", 6, "data") == {"step": 6}
    assert checkpoint_reader.read_frozen(finished / "checkpoints", 6)["codec"]["scale"] == np.float32([0.5])


def test_a_finished_run_does_nothing_when_started_again(finished):
    before = command.digest(finished)
    train.train(tiny.Experiment(tiny.config(steps=6, fsdp=8)), finished)
    assert command.digest(finished) == before and len(history(finished)) == 3


@pytest.mark.parametrize("changes, sentence", [
    (dict(width=64), "another model shape or structure: ema.blocks.fc1.kernel is"),
    (dict(statistics={"toy": {"q01": [0.0, 1.0], "q99": [2.0, 9.0]}}), "toy.q99 is"),
], ids=["width", "statistics"])
def test_a_run_that_does_not_fit_the_checkpoint_is_refused(finished, capsys, changes, sentence):
    before = command.digest(finished)
    assert train.run(tiny.Experiment(tiny.config(6), **changes), finished) == 1
    assert sentence in capsys.readouterr().err
    assert command.digest(finished) == before


def test_another_family_is_refused(finished, capsys):
    config = tiny.config(6)
    config.model.family = "lingbot_va"
    assert train.run(tiny.Experiment(config), finished) == 1
    assert "another model family: 'tiny', this run's is 'lingbot_va'" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_where_it_stands_and_the_run_goes_on_from_there(tmp_path, monkeypatch, capsys, number):
    plain = tiny.Loader.__next__

    def terminated_at_3(loader):
        if loader.step == 2:  # the third batch is being fetched
            os.kill(os.getpid(), number)
        return plain(loader)

    monkeypatch.setattr(tiny.Loader, "__next__", terminated_at_3)
    told = mock.Mock()
    monkeypatch.setattr(cloud_ledger, "open_log", lambda name, job: told if (name, job) == ("log", tmp_path.name) else 1)
    config = tiny.config(steps=6, every=100, fsdp=8)
    config.log.cloud_goodput = "log"
    before = signal.getsignal(signal.SIGINT)
    assert train.run(tiny.Experiment(config), tmp_path) == 143
    assert [call.args[0] for call in told.start_step.call_args_list] == [1, 2, 3] and not told.done.called
    assert {call.args[0] for call in told.end_phase.call_args_list} == {"startup", "compile", "steps", "checkpoint"}
    assert "stopped by a signal at step 3 of 6, saved" in capsys.readouterr().out
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == (signal.SIG_DFL, before)
    assert [record["step"] for record in history(tmp_path)] == [2, 3]


def test_a_second_run_in_a_workdir_is_refused_and_touches_nothing(tmp_path, capsys):
    save = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    save.mkdir(parents=True)
    with owner.owned(tmp_path):
        assert train.run(tiny.Experiment(tiny.config(steps=6, fsdp=8)), tmp_path) == 1
        said = capsys.readouterr().err
        assert f"{tmp_path} is being trained in by process {os.getpid()} of host" in said
        assert save.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "owner.lock"]
    assert (tmp_path / "owner.lock").read_bytes() == b""
    with owner.owned(tmp_path):
        pass


@pytest.mark.parametrize("alive", [True, False])
def test_the_owner_on_another_machine_is_known_by_its_beat(tmp_path, monkeypatch, alive):
    """Its lock is not seen here, as on a mounted bucket."""
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(owner, "DEAD_AFTER", 1.0)
    there = {"host": "far", "pid": 1, "since": "noon", "kernel": "another"}
    (tmp_path / "owner.lock").write_text(json.dumps(there))
    if alive:
        threading.Timer(0.3, (tmp_path / "owner.lock").write_text, [json.dumps(there | {"beat": 1})]).start()
        with pytest.raises(owner.WorkdirTaken, match="process 1 of host far, since noon"), owner.owned(tmp_path):
            pass
    else:
        with owner.owned(tmp_path):
            pass


def test_a_refused_resume_leaves_what_the_run_wrote(finished):
    names = ("statistics.json", "config.json", "arrays.txt")
    before = [(finished / name).read_bytes() for name in names]
    assert json.loads(before[0]) == {"toy": {"q01": [0.0, 1.0], "q99": [2.0, 3.0]}}
    assert train.run(tiny.Experiment(tiny.config(6), statistics={"toy": {"q01": [7.0, 1.0]}}), finished) == 1
    assert [(finished / name).read_bytes() for name in names] == before


def test_another_schedule_is_said_with_what_it_does_to_the_rate(finished):
    config = tiny.config(steps=6)
    saved = checkpoint.read_json(finished / "checkpoints", 6, "meta")["config"]
    del saved["optimizer"]["schedule"]  # from before there was another than the cosine
    assert resume.schedule_change(saved, json.loads(config.to_json()), 4) is None
    config.train.steps = 12
    found = resume.schedule_change(saved, json.loads(config.to_json()), 4)
    before, after = (0.5e-2 * (1 + np.cos(np.pi * (4 - w) / (steps - w))) for steps, w in ((6, 1), (12, 1)))
    assert found == (f"another schedule (train.steps 6 -> 12): the learning rate jumps from {before:.4g} to {after:.4g} at "
                     "step 4, and is 0 at 12")
    config.optimizer.schedule = "wsd"
    longer = json.loads(config.to_json())
    longer["train"]["steps"] = 40
    assert resume.schedule_change(json.loads(config.to_json()), longer, 8) == (
        "another schedule (train.steps 12 -> 40): the learning rate goes on from 0.01 at step 8, and is 0 at 40")


@pytest.mark.parametrize("key, value, theirs", [("name", "lion", "adamw"), ("moments_dtype", "bfloat16", "float32"),
                                               ("frozen_dtype", "bfloat16", "float32")])
def test_moments_of_another_optimizer_are_refused(finished, capsys, key, value, theirs):
    config = tiny.config(steps=12, fsdp=8)
    config.optimizer.update({key: value, "trainable": "."})
    assert train.run(tiny.Experiment(config), finished) == 1
    assert (f"checkpoint of another optimizer: its arrays are those of optimizer.{key} = '{theirs}', and this run has "
            f"'{value}'; go on with '{theirs}', or start a new workdir") in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_with_its_samples(tmp_path, capsys):
    config = tiny.config(steps=6, every=4, fsdp=8)
    assert train.run(tiny.Experiment(config, nan_at=5), tmp_path) == 1  # the sixth step
    error = capsys.readouterr().err
    assert "error: loss is nan at step 6" in error
    assert "episode_index [5, 5, 5, 5, 5, 5, 5, 5]" in error and "sample_index [5000, 5001, " in error
    assert f"last good checkpoint: step 4 in {tmp_path}" in error
    assert checkpoint.steps(tmp_path / "checkpoints") == [4]
    assert all(record["step"] < 6 for record in history(tmp_path))


def test_a_workdir_that_cannot_be_made_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train.run(tiny.Experiment(tiny.config()), tmp_path / "file" / "run") == 1
    assert capsys.readouterr().err.startswith("error: [Errno 20] Not a directory")


def test_a_workdir_that_is_a_url_is_refused_and_not_made_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.run(tiny.Experiment(tiny.config()), "gs://bucket/run") == 1
    assert "--workdir=gs://bucket/run: a mounted folder is needed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class WithoutData(tiny.Experiment):
    """Fails where data is asked for."""

    def data(self, **_):
        raise AssertionError("data was opened")


def test_sizes_that_do_not_fit_the_mesh_are_found_before_any_data_is_read(tmp_path):
    config = tiny.config(fsdp=1, tensor=8)
    with pytest.raises(ValueError, match=r"model.num_heads = 4 does not divide by mesh.tensor = 8"):
        train.train(WithoutData(config), tmp_path)


@pytest.mark.parametrize("typed, nearest", [
    ("train.stesp", "train.steps"), ("trian.steps", "train.steps"), ("steps", "train.steps"),
    ("mesh.tensr", "mesh.tensor"),
])
def test_an_unknown_key_names_the_nearest(typed, nearest, tmp_path, monkeypatch):
    file = tmp_path / "toy.py"
    file.write_text("from configs import base\ndef get_config(arg=None):\n    return base.get_config()\n")
    monkeypatch.setattr(sys, "argv", ["train", f"--config={file}:debug", f"--config.{typed}=3"])  # config_flags looks
    with pytest.raises(SystemExit, match=f"^--config.{typed}: .*toy.py has no such key; the nearest is "
                                         f"--config.{nearest}$"):
        flags._parse(sys.argv)


def test_a_full_disk_ends_the_run_and_leaves_what_was_saved(small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert train.run(tiny.Experiment(tiny.config(steps=1, every=1, fsdp=8)), small_disk) == 0
    left = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(left.f_bavail * left.f_bsize - 150_000))  # no room for a checkpoint
    capsys.readouterr()
    assert train.run(tiny.Experiment(tiny.config(steps=6, every=1, fsdp=8)), small_disk) == 1
    error = capsys.readouterr().err
    good = checkpoint.steps(small_disk / "checkpoints")
    assert good and "No space left on device" in error
    assert error.strip().endswith(f"the last good checkpoint is step {good[-1]}")
    # What fills the disk is its own half-written save: a restart removes that first.
    (small_disk / "filler").unlink()
    (half := small_disk / f"checkpoints/{good[-1] + 1}.orbax-checkpoint-tmp/state").mkdir(parents=True, exist_ok=True)
    left = os.statvfs(small_disk)
    with contextlib.suppress(OSError), (half / "data").open("wb") as file:
        for _ in range(left.f_bavail):
            file.write(bytes(left.f_bsize))
    assert train.run(tiny.Experiment(tiny.config(steps=6, every=6, fsdp=8)), small_disk) == 0


def test_too_little_memory_says_what_to_change(tmp_path, monkeypatch, capsys):
    def no_room(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory: used 120.0G of 95.0G hbm")

    monkeypatch.setattr(steps, "compile_step", no_room)
    config = tiny.config(steps=2, fsdp=4)
    config.train.remat, config.mesh.data = "dots", 2
    assert train.run(tiny.Experiment(config), tmp_path) == 1
    said = capsys.readouterr().err
    assert "used 120.0G of 95.0G hbm" in said and "GiB per device" in said and "MiB  params.blocks.fc" in said
    assert "--config.train.remat=wide  (now dots; then added, lean, full)" in said
    assert "--config.mesh.data=1 --config.mesh.fsdp=8" in said
