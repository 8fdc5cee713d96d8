"""The main job at its smallest, on the commands' own code: record, train, resume."""

import os

import pytest

from configs import quickstart
from data_pipelines.embodiments import get_embodiment
from data_pipelines.pusht import dataset
from launch import build, train
from launch import checkpoint as checkpoint_command
from world_model.batch import batch_spec, check_batch


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
