"""Windows: which steps, which of them are real, and that only they are decoded."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.robots.normalisation import to_robot_units
from data_pipelines.robots.robot import Robot
from data_pipelines.samples import SampleMaker
from data_pipelines.statistics.compute import compute_statistics
from data_pipelines.windows import WindowIndex, split_episodes, take_share
from tests.fake_source import CLIPS, LAYOUT, ROBOT, FakeSource, clips, robots, tokenize
from world_model.batch import Layout, batch_spec


def make_maker(dataset: Dataset, layout: Layout = LAYOUT) -> SampleMaker:
    return SampleMaker(dataset, 0, layout, tokenize, fields=batch_spec(layout, action_dim=32, state_dim=64, text_length=8))


@pytest.mark.parametrize("stride", [1, 3, 40])
def test_windows_cover_every_step(stride):
    lengths, spans = np.array([1, 32, 33, 34, 80]), np.full(5, 32)
    episodes = np.array([4, 5, 6, 7, 9])
    index = WindowIndex.build(np.stack([episodes, 0 * episodes, lengths], 1), lengths, spans, stride)
    found = [index[i] for i in range(len(index))]
    assert len(set(found)) == len(found)
    for row, (episode, length) in enumerate(zip((4, 5, 6, 7, 9), lengths)):
        starts = [s for e, s in found if e == episode]
        assert starts == index.starts(row).tolist()
        assert starts[0] == 0 and max(starts) == max(0, length - 33)
        if stride <= 33:
            assert {s + i for s in starts for i in range(33)} >= set(range(length))
    with pytest.raises(IndexError):
        index[len(index)]


def test_a_window_holds_the_steps_it_should():
    maker = make_maker(robots(lengths=(40, 60)))
    window = next(i for i in range(len(maker.windows)) if maker.windows[i] == (1, 5))
    sample = maker(window, 0)
    np.testing.assert_array_equal(sample["video"][:, 0, 0, 0], 5 + 2 * np.arange(17))  # frame stride 2
    assert sample["frame_mask"].all() and (sample["video"][..., 1] == 1).all()
    # state tokens stand 8 steps apart: two per block of 16 actions
    low, high = (maker.dataset.statistics["state"][q][0] for q in ("q01", "q99"))
    expected = 2 * (np.array([5, 13, 21, 29]) - low) / (high - low) - 1
    np.testing.assert_allclose(sample["state"][:, 0], expected, atol=1e-6)
    # action t leads from step t on, and block 1 is relative to the state at its own start, step 21
    for block, anchor in ((slice(0, 16), 5), (slice(16, 32), 21)):
        steps, state = anchor + np.arange(16), np.array([anchor, -1])
        found = to_robot_units(sample["actions"][block], state, ROBOT, maker.dataset.statistics)
        inside = np.abs(sample["actions"][block, 0]) < 1
        np.testing.assert_allclose(found[inside, 0], (steps + steps % 5)[inside], atol=1e-4)
        np.testing.assert_allclose(found[:, 1], steps % 3, atol=1e-4)
    assert sample["action_mask"][:, [0, 7]].all() and sample["action_mask"].sum() == 64


@pytest.mark.parametrize("layout, frames, chunks, states", [
    # DreamZero: 33 frames, 3 steps apart; four chunks of 24 actions, the state at each one's start (dreamzero0/dreamzero
    # at ab790c1)
    (Layout(33, 6, 8, frames_per_block=2, actions_per_block=24, states_per_block=1), range(0, 97, 3),
     (0, 24, 48, 72), (0, 24, 48, 72)),
    # LingBot-VA: the 16 actions that lead into each latent frame, video at a quarter of their rate; no state
    (Layout(17, 6, 8, frames_per_block=1, actions_per_block=16, states_per_block=0), range(0, 65, 4),
     (0, 16, 32, 48), ()),
    # a single-step VLA: the picture and the state of now, 50 actions from here on
    (Layout(1, 6, 8, frames_per_block=1, actions_per_block=50, states_per_block=1), (0,), (0,), (0,)),
    # a codec of eight raw frames a latent frame: every step a frame, a block of one latent frame each eight of them
    (Layout(33, 6, 8, frames_per_block=1, actions_per_block=8, states_per_block=1, temporal_stride=8), range(33),
     (0, 8, 16, 24), (0, 8, 16, 24)),
], ids=["dreamzero", "lingbot_va", "vla", "stride of eight"])
def test_families_windows_come_from_one_description(layout, frames, chunks, states):
    dataset, start = robots(lengths=(140, 150)), 7
    dataset = dataclasses.replace(dataset, statistics=compute_statistics(dataset, layout))
    maker = make_maker(dataset, layout)
    window = next(i for i in range(len(maker.windows)) if maker.windows[i] == (1, start))
    sample, scale = maker(window, 0), maker.scale("action")
    np.testing.assert_array_equal(sample["video"][:, 0, 0, 0], start + np.array(frames))
    known = [round(float(x)) for x in maker.scale("state").denormalise(sample["state"][:, [0, 9]])[:, 0]]
    low, high = (dataset.statistics["state"][q][0] for q in ("q01", "q99"))
    assert known == [round(min(max(start + s, low), high)) for s in states]
    block = layout.actions_per_block
    assert sample["actions"].shape == (len(chunks) * block, 32) and sample["action_mask"][:, 0].all()
    for i, chunk in enumerate(chunks):
        steps = start + chunk + np.arange(block)
        relative = np.stack([steps + steps % 5 - (start + chunk), steps % 3], 1)
        np.testing.assert_allclose(sample["actions"][i * block:(i + 1) * block, [0, 7]], scale.normalise(relative),
                                   atol=1e-6)


def test_a_robots_horizon_ends_its_chunks():
    """Actions past it are neither learnt nor counted."""
    robot = dataclasses.replace(ROBOT, horizon=10)
    dataset = robots(lengths=(40, 60), embodiment=robot)
    sample = make_maker(dataset)(3, 0)
    real = np.arange(32) % 16 < 10
    np.testing.assert_array_equal(sample["action_mask"][:, 0], real)
    assert not sample["actions"][~real].any()
    assert dataset.statistics["action"]["max"][0] < robots(lengths=(40, 60)).statistics["action"]["max"][0]
    driven = Robot(robot, dataset.statistics, dataclasses.replace(LAYOUT, states_per_block=1), state_dim=64)
    assert driven.horizon == 10 and driven.commands(np.zeros((16, 32)), np.zeros(2)).shape == (10, 2)
    with pytest.raises(ValueError, match="horizon = 0: expected at least 1 action"):
        dataclasses.replace(ROBOT, horizon=0)


@pytest.mark.parametrize("length", [1, 2, 20, 32])
def test_short_episodes_are_padded_and_masked(length):
    maker = make_maker(dataclasses.replace(robots(), source=FakeSource([length])))
    assert len(maker.windows) == 1
    sample = maker(0, 0)
    steps = 2 * np.arange(17)
    np.testing.assert_array_equal(sample["video"][:, 0, 0, 0], np.minimum(steps, length - 1))
    np.testing.assert_array_equal(sample["frame_mask"], steps < length)
    # an action is real where the frame it leads to exists
    real = np.arange(32) < length - 1
    np.testing.assert_array_equal(sample["action_mask"][:, 7], real)
    assert not sample["actions"][~real].any()
    assert np.isfinite(sample["state"]).all()
    # each frame is decoded once, in order, and no other
    assert maker.dataset.source.asked == [[*range(0, length - 1, 2), length - 1]]


def test_clips_are_read_at_the_robots_pace():
    maker = make_maker(clips(lengths=(90,), rate=25.0))
    assert len(maker.windows) == 90 - 80  # 32 control steps at 10 Hz are 80 frames at 25 Hz
    sample = maker(0, 0)
    times = sample["video"][:, 0, 0, 0] / 25.0
    np.testing.assert_allclose(times, 0.2 * np.arange(17), atol=0.5 / 25)
    assert sample["frame_mask"].all() and not sample["action_mask"].any() and not sample["state"].any()


def broken(**changes) -> Dataset:
    class Broken(FakeSource):
        def __getitem__(self, index: int) -> Episode:
            episode = super().__getitem__(index)
            return dataclasses.replace(episode, **{k: f(episode) for k, f in changes.items()})

    return dataclasses.replace(robots(), source=Broken([50]))


def not_a_number(episode: Episode) -> np.ndarray:
    episode.action[17, 1] = np.nan
    return episode.action


@pytest.mark.parametrize("dataset, named", [
    (broken(action=not_a_number), "fake episode 0: action 'grip' is nan at step 17"),
    (broken(action=lambda e: e.action[:, :1]), r"should be \(50, 2\) \(dx, grip\), found \(50, 1\)"),
    (broken(state=lambda e: None), r"state of embodiment 'fake' should be \(50, 2\) \(x, y\), found None"),
    (broken(action=lambda e: e.action[:-1]), r"should be \(50, 2\) \(dx, grip\), found \(49, 2\)"),
    (broken(length=lambda e: 0), "episode 0 has no steps"),
    (broken(read_frames=lambda e: lambda steps: {"front": None}), r"no view \['image'\]; it has \['front'\]"),
    (broken(read_frames=lambda e: lambda steps: {"image": np.zeros((3, 6, 8, 3), np.uint8)}),
     r"expected uint8 \[17, H, W, 3\], found uint8 \[3, 6, 8, 3\]"),
])
def test_inconsistent_recordings_are_named(dataset, named):
    with pytest.raises(BadEpisode, match=named):
        make_maker(dataset)(0, 0)


@pytest.mark.parametrize("part, step, bad", [
    ("action", 49, []), ("action", 0, [0]), ("action", 40, [*range(9, 18)]),  # the last action leads nowhere
    ("state", 49, []), ("state", 8, [0, 8]), ("state", 16, [0, 8, 16])])  # states stand 8 steps apart
def test_only_numbers_that_a_window_uses_must_be_numbers(part, step, bad):
    def spoiled(episode: Episode) -> np.ndarray:
        getattr(episode, part)[step] = np.nan
        return getattr(episode, part)

    maker = make_maker(broken(**{part: spoiled}))
    assert [maker.windows[i][1] for i in range(len(maker.windows))] == [*range(18)]
    for window in range(18):
        if window in bad:
            with pytest.raises(BadEpisode, match=f"fake episode 0: {part} '.*' is nan at step {step}"):
                maker(window, 0)
        else:
            assert all(np.isfinite(maker(window, 0)[name]).all() for name in ("actions", "state"))


def test_video_of_a_robot_recording_can_be_used_alone():
    sample = make_maker(Dataset("fake", FakeSource([50]), CLIPS))(0, 0)
    assert not sample["action_mask"].any() and not sample["actions"].any()


def test_split_is_stable_and_leaves_both_sides():
    train, held = split_episodes("pusht", np.arange(1000), 0.1)
    assert sorted([*train, *held]) == list(range(1000)) and 60 < len(held) < 140
    more_train, more_held = split_episodes("pusht", np.arange(1500), 0.1)
    assert set(held) <= set(more_held) and set(train) <= set(more_train)
    assert set(split_episodes("other", np.arange(1000), 0.1)[1]) != set(held)
    for count, holdout in ((2, 0.001), (2, 0.999), (30, 0.01)):
        assert all(len(side) for side in split_episodes("pusht", np.arange(count), holdout))
    assert len(split_episodes("pusht", np.arange(5), 0.0)[1]) == 0
    with pytest.raises(ValueError, match="'pusht' has 1 episodes: nothing can be held out"):
        split_episodes("pusht", np.arange(1), 0.1)
    with pytest.raises(ValueError, match=r"data.holdout = 1.0"):
        split_episodes("pusht", np.arange(5), 1.0)


def test_a_share_of_the_recordings_is_stable_and_nested():
    episodes = np.arange(1000)
    tenth, half = (take_share("pusht", episodes, share) for share in (0.1, 0.5))
    assert 70 < len(tenth) < 130 and 440 < len(half) < 560 and set(tenth) < set(half)
    np.testing.assert_array_equal(take_share("pusht", episodes, 1.0), episodes)
    assert len(take_share("pusht", episodes[:3], 1e-6)) == 1
    training = split_episodes("pusht", episodes, 0.1)[0]
    assert abs(len(take_share("pusht", training, 0.1)) / len(training) - 0.1) < 0.05  # the two draws are independent
    with pytest.raises(ValueError, match="'pusht': share = 0: expected a fraction"):
        take_share("pusht", episodes, 0)
