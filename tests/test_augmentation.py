"""Crops and jitter: one random choice per sample, the same wherever it is made, bytes in and out."""

import colorsys
import dataclasses

import numpy as np
import pytest

from data_pipelines.augmentation import Augmentation, colour_matrix
from data_pipelines.loader import Loader
from data_pipelines.robots.robot import Robot
from launch.setup.experiment import Experiment
from tests import lerobot_config
from tests.fake_source import BATCH, LAYOUT, ROBOT, robots, tokenize

FULL = Augmentation(crop=0.8, random_crop=True, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08)


def gradient(n: int, height: int, width: int) -> np.ndarray:
    """Every pixel says where it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)[None].repeat(n, 0)


def test_all_views_and_frames_are_cut_at_one_place():
    views = [gradient(3, 100, 200), gradient(3, 100, 200), gradient(2, 50, 60)]
    places = set()
    for sample in range(20):
        a, b, small = FULL.cut(views, 0, sample)
        assert a.shape == (3, 80, 160, 3) and small.shape == (2, 40, 48, 3)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, a[:1].repeat(3, 0))
        top, left = a[0, 0, 0, :2].astype(int)
        assert small[0, 0, 0, 0] == pytest.approx(top / 2, abs=1) and small[0, 0, 0, 1] == pytest.approx(left * 0.3, abs=1)
        places.add((top, left))
    assert len(places) > 15 and max(top for top, _ in places) <= 20
    assert FULL.still.cut(views, 0, 7)[0][0, 0, 0].tolist() == [10, 20, 0]
    np.testing.assert_array_equal(Augmentation().cut(views, 0, 7)[0], views[0])


def test_each_operation_is_the_known_one():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(60, 200, (500, 3))

    def apply(*strengths: float) -> np.ndarray:
        *factors, turn, grey = strengths
        return np.c_[pixels, np.ones(500)] @ colour_matrix(factors, turn, grey).T

    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(apply(1, 1, 1, 0, 99.0), pixels, atol=1e-9)
    np.testing.assert_allclose(apply(1.2, 1, 1, 0, 99.0), 1.2 * pixels)
    np.testing.assert_allclose(apply(1, 0.7, 1, 0, 99.0), 99 + 0.7 * (pixels - 99))
    grey = (pixels @ luma)[:, None]
    np.testing.assert_allclose(apply(1, 1, 0, 0, 99.0), grey.repeat(3, 1))
    np.testing.assert_allclose(apply(1, 1, 1.5, 0, 99.0), grey + 1.5 * (pixels - grey))
    turned = apply(1, 1, 1, 0.08, 99.0)
    np.testing.assert_allclose(turned @ luma, pixels @ luma, atol=1e-3)  # as bright as before
    hue = np.array([colorsys.rgb_to_hsv(*p / 255)[0] for p in pixels])
    moved = (np.array([colorsys.rgb_to_hsv(*p / 255)[0] for p in turned.clip(0, 255)]) - hue + 0.5) % 1 - 0.5
    assert abs(abs(np.median(moved)) - 0.08) < 0.02 and (np.sign(moved) == np.sign(np.median(moved))).mean() > 0.95


def test_a_draw_depends_on_seed_and_sample_alone():
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    [one] = FULL.colour([frames], 3, 11)
    assert one.dtype == np.uint8 and one.shape == frames.shape
    np.testing.assert_array_equal(one, FULL.colour([frames], 3, 11)[0])
    for [other] in (FULL.colour([frames], 3, 12), FULL.colour([frames], 4, 11)):
        assert (one != other).mean() > 0.5
    same, other = FULL.colour([frames[:1].repeat(4, 0), frames[:1]], 3, 11)
    np.testing.assert_array_equal(same, other.repeat(4, 0))
    assert FULL.still.colour([frames], 3, 11)[0] is frames


@pytest.mark.parametrize("changes, named", [
    ({"crop": 0.0}, "data.crop = 0.0"), ({"crop": 1.2}, "data.crop = 1.2"), ({"hue": 0.7}, "data.augment.hue = 0.7"),
    ({"contrast": -0.1}, "data.augment.contrast = -0.1: expected 0 to 1")])
def test_numbers_out_of_range_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        Augmentation(**changes)


def take(**changes) -> list[dict]:
    with Loader([robots(lengths=(40, 60))], LAYOUT, tokenize, fields=BATCH, seed=3, global_batch_size=4,
                **changes) as loader:
        return [next(loader) for _ in range(2)]


def test_hosts_and_workers_make_the_same_pixels():
    whole = take(augmentation=FULL)
    halves = [take(augmentation=FULL, process_index=i, process_count=2) for i in (0, 1)]
    workers = take(augmentation=FULL, workers=1)
    for step, batch in enumerate(whole):
        joined = np.concatenate([half[step]["video"] for half in halves])
        np.testing.assert_array_equal(joined, batch["video"])
        np.testing.assert_array_equal(workers[step]["video"], batch["video"])
    assert (take()[0]["video"] != whole[0]["video"]).any()


def test_training_is_augmented_and_evaluation_is_not(tmp_path):
    config = lerobot_config.get_config()
    config.data.holdout = 0.3
    config.data.crop = 0.8
    plain = Experiment(config).data()
    config = config.copy_and_resolve_references()
    config.data.augment.update(random_crop=True, brightness=0.3)
    data = Experiment(config).data()
    heldout, plain_heldout = (next(iter(each.heldout_batches(2, 2)))["video"] for each in (data, plain))
    np.testing.assert_array_equal(heldout, plain_heldout)
    np.testing.assert_array_equal(data.makers()[0](0, 5)["video"], plain.makers()[0](0, 5)["video"])
    with data.loader() as a, plain.loader() as b:
        assert (next(a)["video"] != next(b)["video"]).any()
        with pytest.raises(ValueError, match=r"augmentation.brightness is 0.3 in the checkpoint, 0.0 in this run"):
            b.check_resume(a.state())


def test_a_robot_sees_the_centre():
    statistics = robots().statistics
    layout = dataclasses.replace(LAYOUT, height=80, width=160, states_per_block=1)
    robot = Robot(ROBOT, statistics, layout, 64, FULL)
    assert robot.canvas({"image": gradient(2, 100, 200)})[0, 0, 0].tolist() == [10, 20, 0]
