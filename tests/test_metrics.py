"""world_model/training/metrics.py: what is logged is what happened."""

import json
import sys
import types
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from world_model.analysis.chips import peak_flops
from world_model.training import metrics, records


def scalars(**values):
    return {"loss": 1.0, "grad_norm": 1.0} | values


def test_a_record_averages_its_steps_and_divides_sums_by_counts():
    steps = [{"loss": 1.0, "low/sum": 6.0, "low/count": 2.0, "high/sum": 0.0, "high/count": 0.0},
             {"loss": 3.0, "low/sum": 0.0, "low/count": 1.0, "high/sum": 0.0, "high/count": 0.0}]
    assert metrics.reduce(steps) == {"loss": 2.0, "low": 2.0}


def test_collect_takes_each_step_once_and_leaves_the_later_ones():
    history = metrics.History()
    for step in (1, 2, 3):
        history.add(step, scalars(loss=jnp.float32(step)), lambda: "")
    assert history.collect(2) == {"loss": 1.5, "grad_norm": 1.0}
    assert history.collect(2) == {}
    assert history.collect(3)["loss"] == 3.0


@pytest.mark.parametrize("bad", [dict(loss=float("nan")), dict(loss=float("inf")), dict(grad_norm=float("nan"))])
def test_the_first_bad_step_and_its_samples_are_named(bad):
    history = metrics.History()
    for step in (1, 2, 3):
        history.add(step, scalars(**bad) if step > 1 else scalars(), lambda step=step: f"episode {step}")
    name, value = next(iter(bad.items()))
    with pytest.raises(metrics.NonFiniteLoss, match=f"{name} is {value} at step 2, samples episode 2"):
        history.collect(3)


class Scene:
    """A time that moves only in the loader (`load` seconds a batch), and steps that take `compute` seconds."""

    def __init__(self, load, compute):
        self.time, self.load, self.compute = 0.0, load, compute
        self.clock = metrics.Clock(4, flops_per_sample=10e12, devices=2, now=lambda: self.time)

    def __next__(self):
        self.time += self.load
        return {}

    def step(self, number):
        self.clock.next_batch(self)
        if number == 1:
            self.clock.restart()
        before = self.clock._running
        end = max(self.time, before.result() if before else 0.0) + self.compute
        def ended():
            return types.SimpleNamespace(done=lambda: self.time >= end, result=lambda: end)
        self.clock._pool = types.SimpleNamespace(submit=lambda *_: ended())
        self.time = max(self.time, before.result()) if before else self.time  # `started` waits for the step before
        self.clock.started(number, {"loss": None})


@pytest.mark.parametrize("load, compute, share, rate", [
    (3.0, 0.0, 1.0, 4 / 3),  # nothing to compute: all is waiting
    (3.0, 2.0, 1 / 3, 4 / 3),  # two of three seconds are hidden behind the step before
    (3.0, 3.0, 0.0, 4 / 3), (1.0, 2.0, 0.0, 4 / 2),
])
def test_waiting_counts_only_while_the_devices_stand_still(load, compute, share, rate):
    scene = Scene(load, compute)
    for number in (1, 2, 3, 4, 5):
        scene.step(number)
    scene.clock.measure(1, 0)
    record = scene.clock.measure(4, steps_left=5)  # steps 2 to 4, while 5 is under way
    assert record["samples_per_second"] == pytest.approx(rate)
    assert record["data_wait"] == pytest.approx(share)
    assert record["tflops_per_device"] == pytest.approx(rate * 10 / 2)
    assert record["seconds_left"] == pytest.approx(5 * 4 / rate)
    assert "mfu" not in record  # a CPU's peak is not known


def test_peaks_of_known_devices():
    for kind, peak in (("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12),
                       ("TPU v6 lite", 918e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-40GB", 312e12),
                       ("cpu", None)):
        assert peak_flops(kind) == peak, kind


def test_the_history_on_disk_is_cut_at_the_resumed_step(tmp_path):
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    writer = records.Writer(tmp_path, step=2)
    writer.write(3, {"loss": 0.5})
    writer.close()
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]


def test_a_line_is_stored_when_it_is_written(tmp_path, monkeypatch):
    """A mounted bucket uploads a file when it is closed or synchronised: others look on, and a host may die, before."""
    stored: dict[int, bytes] = {}
    monkeypatch.setattr(records.os, "fsync", lambda file: stored.update({file: (tmp_path / "metrics.jsonl").read_bytes()}))
    writer = records.Writer(tmp_path, step=0)
    writer.write(1, {"loss": 0.5})
    assert list(stored.values()) == [b'{"step": 1, "loss": 0.5}\n']
    writer.close()


def test_tensorboard_and_wandb_get_the_same_numbers_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    wandb = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    writer = records.Writer(tmp_path, step=0, also=("tensorboard", "wandb"))
    writer.write(1, {"loss": 0.5})
    writer.picture(1, "rollout", np.zeros((4, 4, 3), np.uint8), lambda image: b"png")
    writer.close()
    assert (tmp_path / "rollout" / "00000001.png").read_bytes() == b"png"
    run = wandb.init.return_value
    assert run.finish.called
    assert [call.args[0]["train_step"] for call in run.log.call_args_list] == [1, 1]
    (event,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in event.read_bytes() and np.float32(0.5).tobytes() in event.read_bytes()


def test_seeds_of_two_variants_are_two_runs_of_wandb(tmp_path, monkeypatch):
    wandb = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for variant in ("base", "wide", "wide"):
        workdir = tmp_path / variant / "seed_0"
        workdir.mkdir(parents=True, exist_ok=True)
        records.Writer(workdir, step=0, also=("wandb",)).close()
    first, second, again = (call.kwargs for call in wandb.init.call_args_list)
    assert first["id"] != second["id"] == again["id"] and second["name"] == "wide/seed_0"


def test_the_terminal_line_tells_what_is_known():
    record = {"loss": 1.0, "video_loss": 0.25, "grad_norm": 2.0, "mfu": 0.41, "data_wait": 0.125, "seconds_left": 3725}
    line = metrics.progress(10, 50, record, {"held_out/video_loss": 0.25, "rollout/video_psnr_db": 21.0})
    assert line == ("step 10/50  video 0.2500  loss 1.0000  grad 2.000  MFU 41.0%  data wait 12.5%  held-out video "
                    "0.2500  rolled out 21.0 dB  left 1:02:05")
