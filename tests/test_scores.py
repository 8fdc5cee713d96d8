"""Scores on arrays whose errors are known, and the baselines that need no model."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.robots.embodiments import Dimension, get_embodiment
from data_pipelines.robots.slots import scatter, slot_mask
from launch.reporting import baselines, scores
from world_model.batch import Layout

LAYOUT = Layout(frames=17, height=16, width=16, frames_per_block=2, actions_per_block=8, states_per_block=1)
ROBOT = dataclasses.replace(get_embodiment("pusht"), action=(
    Dimension("target_x", 0, relative_to="agent_x"), Dimension("target_y", 1, relative_to="agent_y")))
STATISTICS = {"dataset": "pusht", "state": {"q01": [0, 0], "q99": [400, 400]},
              "action": {"q01": [-50, -100], "q99": [50, 100], "mean": [5.0, -20.0]}}
DATASETS = (Dataset("pusht", None, ROBOT, statistics=STATISTICS),)


def action_arrays():
    mask = np.repeat(slot_mask(ROBOT.action_slots, 32)[None, None], 16, axis=1).repeat(2, axis=0)
    mask[1, 12:] = False  # a short episode
    truth = np.where(mask, 0.5, 0).astype(np.float32)
    known = np.zeros((2, 16), bool)
    known[:, 8:] = True
    predicted = truth + 0.1
    predicted[:, 8:] += 0.1  # errors 0.01 in the first block, 0.04 in the second
    predicted[~mask] = 99  # never counted
    return {"actions": truth, "action_mask": mask, "predicted_actions": predicted, "mean_actions": truth * 0,
            "repeated_actions": truth + 0.3, "repeated_known": known}


def test_action_scores_by_horizon():
    found = scores.action_scores(action_arrays(), 8)
    steps = np.array([16, 12])  # real steps per window: 16 of the first block, 12 of the second
    np.testing.assert_allclose(found["model_mse"], (16 * 0.01 + 12 * 0.04) / steps.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["predict_mean_mse"], 0.25)
    np.testing.assert_allclose(found["error_ratio"], found["model_mse"] / 0.25)
    np.testing.assert_allclose([found["model_after_first_mse"], found["repeat_last_mse"]], [0.04, 0.09], rtol=1e-5)
    np.testing.assert_allclose(found["by_block"]["model"], [0.01, 0.04], rtol=1e-5)
    assert found["by_block"]["repeat_last"][0] is None
    np.testing.assert_allclose(found["by_step"]["model"][0], 0.025, rtol=1e-5)
    np.testing.assert_allclose(found["by_step"]["model"][7], (2 * 0.01 + 0.04) / 3, rtol=1e-5)
    json.dumps(found, allow_nan=False)


def test_video_scores_leave_out_the_given_frame_and_padding():
    frame_mask = np.ones((2, 17), bool)
    frame_mask[1, 9:] = False
    arrays = {"frame_mask": frame_mask, "latent_mask": frame_mask[:, ::4], "latent_range": np.array([3.0, 5.0])}
    for name in ("video", "copy_last", "codec", "video_raw", "copy_last_raw"):
        arrays[f"{name}_mse"] = np.where(frame_mask, 0.04, 9.0)
        arrays[f"{name}_ssim"] = np.where(frame_mask, 0.5, 9.0)
        arrays[f"{name}_mse"][:, 0] = 77
    arrays["copy_last_mse"][:, 1:] = 0  # a still scene
    for name in ("latent", "copy_last_latent"):
        arrays[f"{name}_mse"] = np.where(frame_mask[:, ::4], 0.25, 9.0)
    found = scores.video_scores(arrays)
    np.testing.assert_allclose(found["video_psnr_db"], 10 * np.log10(4 / 0.04))
    assert found["video_ssim"] == 0.5 and found["copy_last_psnr_db"] is None
    np.testing.assert_allclose(found["latent_psnr_db"], 20)  # peak 5, error 0.25
    assert found["by_frame"]["frame"] == list(range(1, 17)) and len(found["by_latent_frame"]["frame"]) == 4
    np.testing.assert_allclose(found["by_frame"]["video_psnr_db"], 20)
    json.dumps(found, allow_nan=False)


@pytest.fixture
def batch():
    """Two windows of recorded targets in pixels, through the same normalisation as training."""
    rng = np.random.default_rng(0)
    targets, states = rng.uniform(180, 220, (2, 16, 2)), rng.uniform(190, 210, (2, 2, 2))
    relative = targets - np.repeat(states, 8, axis=1)
    mask = np.repeat(slot_mask(ROBOT.action_slots, 32)[None, None], 16, axis=1).repeat(2, axis=0)
    actions = scatter((relative / [50, 100]).astype(np.float32), ROBOT.action_slots, 32)
    state = scatter((states / 200 - 1).astype(np.float32), ROBOT.state_slots, 64)
    batch = {"actions": actions, "action_mask": mask, "state": state, "dataset_id": np.zeros(2, np.int32)}
    return batch, targets, states


def test_repeating_keeps_the_target_in_robot_units(batch):
    batch, targets, states = batch
    repeated, known = baselines.repeated_actions(batch, DATASETS, LAYOUT)
    assert not known[:, :8].any() and known[:, 8:].all()
    back = repeated[:, 8:, :2] * [50, 100] + states[:, 1][:, None]
    np.testing.assert_allclose(back, np.repeat(targets[:, 7:8], 8, axis=1), atol=1e-2)
    assert not np.allclose(repeated[:, 8, :2], batch["actions"][:, 7, :2], atol=0.02)  # another number: it moved


def test_repeating_knows_nothing_after_a_padded_block(batch):
    batch, *_ = batch
    batch["action_mask"][1, 7:] = False
    known = baselines.repeated_actions(batch, DATASETS, LAYOUT)[1]
    assert known[0, 8:].all() and not known[1].any()


def test_mean_actions(batch):
    mean = baselines.mean_actions(batch[0], DATASETS, LAYOUT)
    assert mean.shape == (2, 16, 32)
    np.testing.assert_allclose(mean[..., :2], np.broadcast_to([0.1, -0.2], (2, 16, 2)), rtol=1e-6)
    assert (mean[..., 2:] == 0).all()
