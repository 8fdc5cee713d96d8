"""The main job at its smallest, on the commands' own code: record, train, resume, evaluate, export, report, notebook."""

import json
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from configs import quickstart
from data_pipelines.embodiments import get_embodiment
from data_pipelines.pusht import dataset
from launch import build, evaluate, export, report, train
from launch import checkpoint as checkpoint_command
from world_model.batch import batch_spec, check_batch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    recorded = tmp_path_factory.mktemp("pusht") / "data"
    assert dataset.write(recorded, episodes=6, clips=3, seed=0, image_size=32, workers=1)
    c = quickstart.get_config("debug")
    c.layout.update(frames=9, height=32, width=32, frames_per_block=1, actions_per_block=4)
    c.data.datasets.pusht.path, c.data.datasets.clips.path = (str(recorded / d) for d in ("pusht_rlds", "pusht_clips"))
    c.data.holdout, c.encoders.fit_clips = 0.3, 4
    c.train.update(steps=4, global_batch_size=8, log_every=1)
    c.checkpoint.every = 2
    return c


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train.train(config, workdir, build)
    return workdir


def test_batches_keep_the_contract(config, tmp_path):
    with build.data(config, tmp_path).loader() as loader:
        batch = next(loader)
    spec = batch_spec(build.layout_of(config), action_dim=32, state_dim=64, text_length=config.model.text_length)
    check_batch(batch, spec, 8)
    clip = batch["embodiment_id"] == get_embodiment("video_only").id
    assert clip.sum() == 2 and not batch["action_mask"][clip].any()
    assert batch["action_mask"][~clip].any(axis=(1, 2)).all()


def test_resume_continues_bit_for_bit(config, workdir, tmp_path):
    """The first half of the run, then the second in a new process's state: the checkpoint of step 4 is the same."""
    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    os.symlink(workdir / "checkpoints" / "2", half / "checkpoints" / "2")
    train.train(config, half, build)
    assert checkpoint_command.diff(workdir, half, 4, 4) == []


def test_evaluate_export_and_report(workdir):
    restored = build.restore(workdir)
    evaluation, arrays = evaluate.evaluate(restored, say=lambda text: None)
    evaluate.write(workdir, evaluation, arrays)
    parity = export.export(restored, workdir / "export")
    assert parity["max"] <= 1e-4
    page = report.report(workdir, seconds=1.0, resume_bitwise=True, export_max_abs_diff=parity["max"])
    summary = json.loads((page.parent / "summary.json").read_text())
    assert {"seconds", "steps", "samples_per_second", "video_psnr_db", "copy_last_psnr_db", "codec_psnr_db",
            "action_error_ratio", "mixture", "resume_bitwise", "export_max_abs_diff"} <= summary.keys()
    assert summary["steps"] == 4 and np.isfinite(summary["video_psnr_db"])
    assert summary["mixture"]["pusht"]["realised"] == pytest.approx(0.75)
    assert "http" not in page.read_text().replace("http://www.w3.org", "")


def test_the_notebook_runs(workdir):
    notebook = nbformat.read(ROOT / "notebooks" / "tutorial.ipynb", as_version=4)
    before = os.environ.get("WAMAX_WORKDIR")
    os.environ["WAMAX_WORKDIR"] = str(workdir)
    try:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    finally:
        os.environ.pop("WAMAX_WORKDIR") if before is None else os.environ.update(WAMAX_WORKDIR=before)
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 4
