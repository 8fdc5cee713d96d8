"""The script for the day a GPU is there: its machinery, and its steps at tiny size without what cannot be carried."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

from benchmarks import device_check
from benchmarks.device_check import Step
from data_pipelines.simulators.pusht import dataset
from data_pipelines.simulators.recorder import write_rlds


@pytest.fixture(autouse=True)
def flags_are_parsed():
    if not device_check.flags.FLAGS.is_parsed():
        device_check.flags.FLAGS.mark_as_parsed()


def steps(monkeypatch, tmp_path, **programs: str) -> None:
    """Makes the steps modules of their own: one that runs each program."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, program in programs.items():
        (tmp_path / f"{name}_step.py").write_text(program)
    monkeypatch.setattr(device_check, "STEPS", [Step(name, 20, f"{name}_step", "", "") for name in programs])


def test_a_failed_step_stops_nothing_and_what_was_measured_stays(monkeypatch, tmp_path):
    steps(monkeypatch, tmp_path, bad="import sys; print('no'); sys.exit('out of luck')", good="print('{\"mfu\": 0.5}')",
          slow="import time; print('{\"half\": 1}', flush=True); time.sleep(60)")
    monkeypatch.setattr(device_check, "STEPS", [s._replace(seconds=2 if s.name == "slow" else 20)
                                                for s in device_check.STEPS])
    made = device_check.check(tmp_path / "out", 1.0)
    assert [line["step"] for line in made] == ["bad", "good", "slow"]
    bad, good, slow = made
    assert bad["exit"] == 1 and "out of luck" in bad["said"]
    assert good["exit"] == 0 and good["found"] == [{"mfu": 0.5}]
    assert slow["exit"] == -9 and slow["found"] == [{"half": 1}]
    kept = (tmp_path / "out" / "device_check.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == made
    # The second call goes on: what succeeded is not run again.
    assert [line["step"] for line in device_check.check(tmp_path / "out", 1.0)] == ["bad", "slow"]


def test_no_step_begins_when_time_is_up(monkeypatch, tmp_path):
    steps(monkeypatch, tmp_path, first="")
    assert device_check.check(tmp_path / "out", 0.0) == []


def test_a_missing_wheel_is_named(monkeypatch):
    monkeypatch.setattr(device_check, "IMPORTED", ("jax", "no_such_module"))
    with flagsaver.flagsaver(out="somewhere"), pytest.raises(SystemExit, match="no_such_module cannot be imported: carry"):
        device_check.main(None)


def test_wheels_are_of_the_lock():
    lock = {line.partition("==")[0].replace("-", "_") for line in Path("requirements-py312.lock").read_text().split()}
    assert {name.replace("-", "_") for name in device_check.WHEELS} <= lock


@pytest.mark.parametrize("name", ["rates", "dreamzero_14b 2 layers", "rollout", "vae", "learning"])
def test_a_rehearsal_without_what_cannot_be_carried(name, tmp_path):
    """Other steps are commands that have tests of their own."""
    (tmp_path / "absent" / "av").mkdir(parents=True)
    (tmp_path / "absent" / "av" / "__init__.py").write_text("raise ImportError('PyAV is not carried')")
    if name == "learning":
        write_rlds(tmp_path / "pusht", "pusht", 64, (2, 2), (dataset.episode_steps((0, 0, i), 64, "slide")[1]
                                                        for i in range(12)))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device_check", f"--out={tmp_path}/out", "--rehearse", f"--only={name}",
         f"--carried={tmp_path}"], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}/absent:."})
    line = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and line["exit"] == 0, line["said"]
    assert line["found"] or name == "learning"
    if name in ("dreamzero_14b 2 layers", "rollout"):
        assert line["found"][0]["times_as_fast"] > 0
