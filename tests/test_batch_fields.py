"""Batch fields: a row holds what is asked for and no more; cameras apart, of robots with different numbers of them."""

import dataclasses
import json

import numpy as np
import pytest
from ml_dtypes import bfloat16

from data_pipelines.augmentation import Augmentation
from data_pipelines.cache.format import record_fields
from data_pipelines.cache.reader import LatentCache
from data_pipelines.cache.writer import CacheWriter, save_encoders
from data_pipelines.dataset import FIELDS, Dataset
from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.loader import Loader
from data_pipelines.robots.robot import Robot
from data_pipelines.robots.views import resize
from data_pipelines.samples import SampleMaker
from data_pipelines.statistics.compute import compute_statistics
from data_pipelines.statistics.stored import save_statistics
from tests.fake_source import BATCH, LAYOUT, ROBOT, FakeSource, robots, tokenize
from world_model.batch import Layout, batch_spec, check_batch

ONE_FRAME = Layout(frames=1, height=10, width=12, frames_per_block=1, actions_per_block=8, states_per_block=1)
VIEWS = batch_spec(ONE_FRAME, action_dim=32, state_dim=64, text_length=8, views=3)
CAMERAS = {"head": (6, 8), "left": (12, 9), "right": (10, 12)}  # height, width
THREE = dataclasses.replace(ROBOT, name="three", id=8, views=("right", "head", "left"), view_layout="grid_2x2")
FULL = Augmentation(crop=0.8, random_crop=True, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08)


def picture(camera: str, episode: int, step: int) -> np.ndarray:
    """uint8 [H, W, 3], another one for every camera, episode and step."""
    return np.random.default_rng([[*CAMERAS].index(camera), episode, step]).integers(0, 256, (*CAMERAS[camera], 3), np.uint8)


class Cameras(FakeSource):
    """Three cameras of different sizes."""

    def __getitem__(self, index: int) -> Episode:
        def read_frames(steps: np.ndarray) -> dict[str, np.ndarray]:
            self.asked.append(np.asarray(steps).tolist())
            return {camera: np.stack([picture(camera, index, int(step)) for step in steps]) for camera in CAMERAS}

        return dataclasses.replace(super().__getitem__(index), read_frames=read_frames)


def with_statistics(dataset: Dataset) -> Dataset:
    return dataclasses.replace(dataset, statistics=compute_statistics(dataset, ONE_FRAME))


def mixture() -> list[Dataset]:
    """A robot with one camera and one with three."""
    return [with_statistics(Dataset("fake", FakeSource([40, 60]), ROBOT)),
            with_statistics(Dataset("three", Cameras([50, 30], name="three"), THREE))]


def make_loader(**changes) -> Loader:
    return Loader(mixture(), ONE_FRAME, tokenize, **{**dict(fields=VIEWS, seed=3, global_batch_size=4), **changes})


def take(loader: Loader, steps: int) -> list[dict]:
    with loader:
        return [next(loader) for _ in range(steps)]


@pytest.mark.parametrize("workers", [0, 1])
def test_robots_of_one_and_three_cameras_share_a_batch(workers):
    for batch in take(make_loader(workers=workers), 3):
        check_batch(batch, VIEWS, 4)
        assert sorted(batch["dataset_id"]) == [0, 0, 1, 1] and "video" not in batch and "frame_mask" not in batch
        np.testing.assert_array_equal(batch["view_mask"], np.arange(3) < np.where(batch["dataset_id"], 3, 1)[:, None])
        assert not batch["views"][~batch["view_mask"]].any()
        for dataset, episode, start, views in zip(*(batch[n] for n in ("dataset_id", "episode_index", "start", "views"))):
            if dataset == 1:  # each camera in its own picture, in the embodiment's order
                expected = [resize(picture(camera, episode, start)[None], 10, 12)[0] for camera in THREE.views]
                np.testing.assert_array_equal(views, expected)
            else:
                assert (views[0, ..., 0] == start).all() and (views[0, ..., 1] == episode).all()


def test_views_resume_as_if_nobody_had_stopped():
    everything, first = take(make_loader(), 5), make_loader()
    take(first, 2)
    saved = json.loads(json.dumps(first.state()))
    resumed = make_loader(start_step=saved["step"])
    resumed.check_resume(saved)
    for found, expected in zip(take(resumed, 3), everything[2:]):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_views_are_cut_and_coloured_as_the_canvas_is():
    """One camera in a layout of one picture: the same pixels either way, whatever else is in the batch."""
    def maker(fields: dict, augmentation: Augmentation = FULL) -> SampleMaker:
        robot = dataclasses.replace(THREE, views=("left",), view_layout="single")
        dataset = with_statistics(Dataset("one", Cameras([50, 30]), robot))
        return SampleMaker(dataset, 0, ONE_FRAME, tokenize, fields=fields, augmentation=augmentation, seed=5)

    canvas = maker(batch_spec(ONE_FRAME, action_dim=32, state_dim=64, text_length=8))
    apart, plain = maker(VIEWS), maker(VIEWS, FULL.still)
    for window in range(5):
        views = apart(window, 7 * window)["views"]
        np.testing.assert_array_equal(views[0], canvas(window, 7 * window)["video"][0])
        assert (views[0] != plain(window, 7 * window)["views"][0]).mean() > 0.5


def test_a_robot_at_work_sees_what_training_saw():
    dataset = mixture()[1]
    sample = SampleMaker(dataset, 0, ONE_FRAME, tokenize, fields=VIEWS, augmentation=FULL.still)(4, 0)
    frames = {c: picture(c, int(sample["episode_index"]), int(sample["start"]))[None] for c in CAMERAS}
    robot = Robot(THREE, dataset.statistics, ONE_FRAME, 64, FULL, num_views=3)
    views, mask = robot.views(frames)
    np.testing.assert_array_equal(views, sample["views"])
    np.testing.assert_array_equal(mask, sample["view_mask"])
    alone = Robot(dataclasses.replace(ROBOT, views=("head",)), dataset.statistics, ONE_FRAME, 64, num_views=2)
    views, mask = alone.views(frames)
    assert views.shape == (2, 10, 12, 3) and mask.tolist() == [True, False] and not views[1].any()
    with pytest.raises(ValueError, match="could not broadcast"):  # several frames of a camera are no view
        robot.views({camera: frames[camera].repeat(2, 0) for camera in CAMERAS})


def test_too_many_cameras_are_named():
    two = batch_spec(ONE_FRAME, action_dim=32, state_dim=64, text_length=8, views=2)
    named = r"'three' has 3 cameras \(right, head, left\), but a sample has 2 views"
    with pytest.raises(ValueError, match=named):
        make_loader(fields=two)
    statistics = mixture()[1].statistics
    with pytest.raises(ValueError, match=named):
        Robot(THREE, statistics, ONE_FRAME, 64, num_views=2)
    with pytest.raises(ValueError, match="but a sample has 0 views"):
        Robot(THREE, statistics, ONE_FRAME, 64).views({})


def test_views_hold_one_frame_each():
    with pytest.raises(ValueError, match=r"layout\.frames = 17: .* set layout\.frames = 1"):
        batch_spec(LAYOUT, action_dim=32, state_dim=64, text_length=8, views=3)


@pytest.mark.parametrize("names", [
    ("actions",), ("action_mask", "start"), ("state", "text_length"), ("frame_mask",), ("video", "sample_index"),
    ("dataset_id", "episode_index")], ids="+".join)
def test_a_row_holds_what_is_asked_for_bit_for_bit(names):
    dataset = robots(lengths=(40, 60, 20))
    everything = SampleMaker(dataset, 2, LAYOUT, tokenize, fields=BATCH)
    some = SampleMaker(dataset, 2, LAYOUT, tokenize, fields={name: BATCH[name] for name in names})
    for window in (0, 5, len(some.windows) - 1):
        full = everything(window, 9)
        assert list(full) == list(BATCH)
        dataset.source.asked.clear()
        row = some(window, 9)
        assert list(row) == list(names)
        for name in names:
            np.testing.assert_array_equal(row[name], full[name])
            assert row[name].dtype == full[name].dtype
        assert bool(dataset.source.asked) == ("video" in names)  # nothing is decoded that nobody asked for


def test_what_nobody_asks_for_need_not_be_there():
    dataset = dataclasses.replace(robots(), statistics=None)
    fields = {name: BATCH[name] for name in ("video", "text_ids", "text_length")}
    with Loader([dataset], LAYOUT, tokenize, fields=fields, seed=0, global_batch_size=4) as loader:
        check_batch(next(loader), fields, 4)
    blind = dataclasses.replace(dataset, embodiment=dataclasses.replace(ROBOT, views=("behind",)))
    SampleMaker(blind, 0, LAYOUT, tokenize, fields={"text_ids": BATCH["text_ids"]})(0, 0)
    with pytest.raises(BadEpisode, match=r"no view \['behind'\]"):
        SampleMaker(blind, 0, LAYOUT, tokenize, fields={"video": BATCH["video"]})(0, 0)


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"batch field 'depth' is unknown; known: video, .*view_mask.*sample_index"):
        make_loader(fields={**VIEWS, "depth": ((10, 12), np.float32)})
    assert {*BATCH, *VIEWS} == set(FIELDS)


def test_what_was_computed_beforehand_comes_beside_the_recordings(tmp_path):
    """A teacher's features: row for row, in the field's dtype; a file that is missing or of another episode is named."""
    (tmp_path / "teacher").mkdir()
    for episode, length in enumerate((40, 60)):
        steps = np.arange(length, dtype=np.float16)[:, None, None] + 100 * episode
        np.save(tmp_path / f"teacher/{episode:06d}.npy", np.broadcast_to(steps, (length, 2, 3)))
    dataset = dataclasses.replace(mixture()[0], features=str(tmp_path))
    fields = {"episode_index": VIEWS["episode_index"], "start": VIEWS["start"], "teacher": ((2, 3), bfloat16)}
    maker = SampleMaker(dataset, 0, ONE_FRAME, tokenize, fields=fields)
    for window in (0, 7, len(maker.windows) - 1):
        row = maker(window, 0)
        assert row["teacher"].dtype == bfloat16 and row["teacher"].shape == (2, 3)
        np.testing.assert_array_equal(row["teacher"].astype(int), 100 * row["episode_index"] + row["start"])
    np.save(tmp_path / "teacher/000000.npy", np.zeros((40, 2, 4), np.float32))
    with pytest.raises(BadEpisode, match=r"teacher/000000.npy: expected float \[40, 2, 3\], found float32 \[40, 2, 4\]"):
        maker(0, 0)
    (tmp_path / "teacher/000000.npy").unlink()
    with pytest.raises(BadEpisode, match="teacher/000000.npy: cannot be read: .*No such file"):
        maker(0, 0)


def test_sizes_that_the_layout_does_not_have_are_found_before_training():
    wrong = VIEWS | {"state": ((2, 64), np.float32)}
    with make_loader(fields=wrong) as loader, pytest.raises(ValueError, match=r"batch\['state'\]: expected \(4, 2, 64\)"):
        next(loader)


def test_a_cache_holds_the_fields_that_its_spec_names(tmp_path):
    """Without latents or text: views, and what a family's encoder makes of them, in the order of the spec."""
    spec = {name: VIEWS[name] for name in ("dataset_id", "views", "view_mask", "actions", "sample_index")}
    spec |= {"view_features": ((3, 5), np.float16)}
    assert list(record_fields(spec)) == ["actions", "views", "view_mask", "view_features"]
    [dataset] = mixture()[1:]
    maker = SampleMaker(dataset, 0, ONE_FRAME, tokenize, fields=VIEWS)
    rows = [maker(i, 0) | {"view_features": np.full((3, 5), i, np.float16)} for i in range(len(maker.windows))]
    writer = CacheWriter(tmp_path, {"identity": {}}, spec, 100)
    writer.write_shard("three", 0, iter(rows))
    writer.write_texts([""], lambda prompt: np.zeros((1, 1)))
    writer.write_index("three", lengths=dataset.source.lengths(), rates=dataset.source.rates(),
                       kept=dataset.source.stretches(), text=np.zeros(2, np.int64))
    save_encoders(tmp_path, {})
    save_statistics({}, f"{tmp_path}/statistics.json")
    assert writer.finish({"three": len(rows)})
    cache, options = LatentCache(tmp_path, {}, spec), dict(fields=VIEWS, seed=0, global_batch_size=4)
    with Loader([dataset], ONE_FRAME, tokenize, **options) as video, \
            Loader([dataset], ONE_FRAME, tokenize, cache=cache, **options) as cached:
        for expected, found in ((next(video), next(cached)) for _ in range(3)):
            check_batch(found, spec, 4)
            for name in found.keys() - {"view_features"}:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
            windows = [[maker.windows[i] for i in range(len(rows))].index(place) for place in
                       zip(expected["episode_index"].tolist(), expected["start"].tolist())]
            np.testing.assert_array_equal(found["view_features"][:, 0, 0], windows)
