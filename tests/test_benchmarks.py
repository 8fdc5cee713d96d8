"""A benchmark beside somebody's own implementation of the step."""

import itertools
import json
import statistics
import time

import pytest

from benchmarks import reference, train_step
from world_model.batch import Layout

THEIRS = '''
import json, pathlib

def make_step(shape, device):
    told = pathlib.Path(__file__).with_name("told.json")
    steps = []

    def step():
        steps.append(device)
        told.write_text(json.dumps([shape, steps]))

    return step
'''


def test_the_reference_is_given_the_shape_and_compared(tmp_path):
    (tmp_path / "theirs.py").write_text(THEIRS)
    theirs = reference.load_step(str(tmp_path / "theirs.py"), {"dim": 64, "layout": {"frames": 33}})
    ours, their_times = reference.alternate(2, lambda: time.sleep(0.05), theirs)
    shape, steps = json.loads((tmp_path / "told.json").read_text())
    assert shape == {"dim": 64, "layout": {"frames": 33}} and steps == ["cpu"] * (2 + reference.NOT_TIMED)
    line = reference.compare(ours, their_times)
    assert line["times_as_fast"] == pytest.approx(line["reference_median_seconds"] / statistics.median(ours))


THEIRS_IN_TORCH = '''
import torch
from torch import nn

def make_step(shape, device):
    layout = shape["layout"]
    frames = (layout["frames"] - 1) // 4 + 1
    tokens = frames * shape["latent_height"] * shape["latent_width"] // 4
    channels = 4 * shape["latent_channels"]  # patches of 2 x 2
    layer = nn.TransformerEncoderLayer(shape["dim"], shape["num_heads"], shape["ffn_dim"], batch_first=True)
    model = nn.Sequential(nn.Linear(channels, shape["dim"]), nn.TransformerEncoder(layer, shape["num_layers"]),
                          nn.Linear(shape["dim"], channels)).to(device)
    video, target = torch.randn(2, shape["batch"], tokens, channels, device=device)

    def step():
        model.zero_grad()
        (model(video) - target).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())
        if device == "cuda":
            torch.cuda.synchronize()

    return step
'''


def test_the_train_step_beside_a_step_in_torch(tmp_path, monkeypatch):
    """The whole command at a small width; XLA's own count, a second compilation, aside."""
    (tmp_path / "theirs.py").write_text(THEIRS_IN_TORCH)
    monkeypatch.setattr(train_step, "SIZES", train_step.SIZES | dict(
        dim=16, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=16, text_dim=8, text_length=4, image_dim=8,
        image_tokens=3, action_hidden_dim=16))
    monkeypatch.setattr(train_step, "LAYOUT", Layout(9, 64, 96, 2, 2, 1))
    monkeypatch.setattr(train_step, "unrolled_flops", lambda *_: 0.0)
    line = json.loads(json.dumps(train_step.measure(2, str(tmp_path / "theirs.py"))))
    assert line["times_as_fast"] == pytest.approx(line["reference_median_seconds"] / line["median_seconds"])
    assert 0 < line["reference_best_seconds"] <= line["reference_median_seconds"]
    with pytest.raises(ValueError, match="nowhere.py: no such file"):
        train_step.measure(2, str(tmp_path / "nowhere.py"))


def test_steps_are_taken_in_turn_and_the_first_ones_not_timed():
    taken = []
    ours, theirs = reference.alternate(3, lambda: taken.append("ours"), lambda: taken.append("theirs"))
    assert len(ours) == len(theirs) == 3
    assert taken == list(itertools.islice(itertools.cycle(["ours", "theirs"]), 2 * (3 + reference.NOT_TIMED)))


def test_a_file_without_a_step_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="empty.py defines no make_step"):
        reference.load_step(str(tmp_path / "empty.py"), {})
    with pytest.raises(ValueError, match="nowhere.py: no such file"):
        reference.load_step(str(tmp_path / "nowhere.py"), {})
