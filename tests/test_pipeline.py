"""The main job at its smallest, on the commands' own code: record, train, resume, evaluate, export, report, notebook."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

from data_pipelines.robots.embodiments import get_embodiment
from launch import checkpoint as checkpoint_command
from launch import evaluate, export, report, train
from launch.setup.experiment import Experiment
from launch.setup.restore import restore
from tests import tiny_run
from world_model.batch import batch_spec, check_batch


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    c = tiny_run.config(tmp_path_factory.mktemp("pusht") / "data")
    c.checkpoint.every = 2
    return c


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train.train(Experiment(config), workdir)
    return workdir


def test_batches_keep_the_contract(config, tmp_path):
    experiment = Experiment(config)
    with experiment.data().loader() as loader:
        batch = next(loader)
    spec = batch_spec(experiment.layout, action_dim=32, state_dim=64, text_length=config.model.text_length)
    check_batch(batch, spec, 8)
    clip = batch["embodiment_id"] == get_embodiment("video_only").id
    assert clip.sum() == 2 and not batch["action_mask"][clip].any()
    assert batch["action_mask"][~clip].any(axis=(1, 2)).all()


def test_resume_continues_bit_for_bit(config, workdir, tmp_path):
    """The first half of the run, then the second in a new process's state: the checkpoint of step 4 is the same."""
    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    os.symlink(workdir / "checkpoints" / "2", half / "checkpoints" / "2")
    train.train(Experiment(config), half)
    assert checkpoint_command.diff(workdir, half, 4, 4) == []


@pytest.fixture(scope="module")
def restored(workdir):
    return restore(workdir)


def test_evaluate_export_report(restored, workdir):
    evaluation, arrays = evaluate.evaluate(restored, say=lambda *_: None)
    other = restored.config.copy_and_resolve_references()
    other.evaluate.batch_size = 3  # of 4 windows: the second batch holds one
    same, _ = evaluate.evaluate(dataclasses.replace(restored, experiment=Experiment(other)), say=lambda *_: None)
    assert same["windows"] == evaluation["windows"] == 4
    for part, name in (("loss", "video_loss"), ("loss", "action_loss"), ("action", "model_mse")):
        assert same[part][name] == pytest.approx(evaluation[part][name], rel=1e-4)
    evaluate.write(workdir, evaluation, arrays)
    parity = export.export(restored, workdir / "export")
    assert parity["passed"] and parity["max"] <= 1e-4
    page = report.report(workdir, seconds=1.0, resume_bitwise=True, export_max_abs_diff=parity["max"])
    summary = json.loads((workdir / "report" / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["resume_bitwise"] is True
    for name in ("samples_per_second", "video_psnr_db", "copy_last_psnr_db", "codec_psnr_db", "action_error_ratio",
                 "repeat_last_ratio"):
        assert math.isfinite(summary[name]) and summary[name] > 0, name
    shares = {name: part["realised"] for name, part in summary["mixture"].items()}
    assert shares == {"clips": pytest.approx(0.25, abs=0.01), "pusht": pytest.approx(0.75, abs=0.01)}
    text = page.read_text()
    assert text.count("data:image/") >= 6 and "http" not in text.replace("http://www.w3.org", "")


def test_notebook_runs(workdir):
    """The tutorial on this run; every figure that it promises is drawn."""
    import nbformat
    from nbclient import NotebookClient

    root = Path(__file__).parents[1]
    notebook = nbformat.read(root / "notebooks" / "tutorial.ipynb", as_version=4)
    os.environ["WAMAX_WORKDIR"] = str(workdir)
    try:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": root / "notebooks"}}).execute()
    finally:
        del os.environ["WAMAX_WORKDIR"]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
