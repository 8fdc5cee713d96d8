"""Every script of examples/ runs as a user runs it, one after the other on a small recording."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from data_pipelines.simulators.pusht import dataset
from launch.setup.experiment import Experiment
from world_model import functional
from world_model.families.lingbot_vla.model import LingBotVLA
from world_model.families.lingbot_vla.weights import released_format
from world_model.training import checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs an example with arguments and returns what it prints."""
    def run(name: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capfd.readouterr().out
    return run


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    recorded = tmp_path_factory.mktemp("pusht") / "data"
    assert dataset.write(recorded, episodes=6, clips=3, seed=0, image_size=32, workers=1)
    return recorded


def test_train_roll_out_serve(run, recorded, tmp_path):
    workdir, picture = tmp_path / "run", tmp_path / "imagined.png"
    assert "done at step 6" in run("train_from_python", workdir, recorded)
    assert checkpoint.steps(workdir / "checkpoints")[-1] == 6

    assert "step 6: actions (4, 32, 32)" in run("roll_out", workdir, picture)
    frames = np.asarray(Image.open(picture)).reshape(4, 2, 64, 17, 64, 3)  # window, real or imagined, rows, frame
    assert not (frames[:, 0] == frames[:, 1]).all()
    assert frames[:, 1].std() > 5  # not one colour

    commands = re.findall(r"commands \((\d+), (\d+)\)", run("serve", workdir))
    assert commands == [("16", "2")] * 2


def test_a_dataset_of_ones_own(run):
    said = run("plug_in_a_dataset")
    assert "video: uint8 (8, 17, 64, 64, 3)" in said and "actions: float32 (8, 32, 32)" in said


def test_an_export_is_checked(tmp_path, monkeypatch):
    """Of two views; the whole command, as somebody runs it on a policy of another project."""
    config = quickstart.get_config("lingbot_vla_debug")
    config.model.views = 2
    model = Experiment(config).model
    rng = np.random.default_rng(0)
    shapes = functional.parameters(functional.abstract(LingBotVLA, model.spec))
    released_format.write(tmp_path / "export", model.spec, {
        name: rng.normal(0, 0.05, x.shape).astype(np.float32) for name, x in shapes.items()})
    monkeypatch.setenv("WAMAX_EXPORT", str(tmp_path / "export"))
    done = subprocess.run([sys.executable, "-m", "launch.check_policy", "check_an_export:adapter", f"--out={tmp_path}"],
                          capture_output=True, text=True, cwd=EXAMPLES.parent,
                          env={**os.environ, "PYTHONPATH": str(EXAMPLES)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed, 0 failed, 2 not checked" in done.stdout


def test_examples_are_short_and_all_run_here():
    scripts = {path.stem: path.read_text() for path in EXAMPLES.glob("*.py")}
    tests = Path(__file__).read_text()
    for name, text in scripts.items():
        assert len(text.splitlines()) < 60 and text.startswith('"""'), name
        assert f'run("{name}"' in tests or f'"{name}:adapter"' in tests, name
