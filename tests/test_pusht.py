"""The simulated recordings: physics as predicted, motion with a purpose, the same seed the same arrays."""

import json

import numpy as np
import pytest

from data_pipelines.simulators import recorder
from data_pipelines.simulators.pusht import controller, dataset, recording
from data_pipelines.simulators.pusht.simulator import GOAL, RATE, WORLD, Palette, Simulator

SIZE = 32


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "MAX_STEPS", 12)
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("pusht") / "data"
    assert dataset.write(out, episodes=3, clips=2, seed=0, image_size=SIZE, workers=1)
    return out


def test_the_pose_asked_for_is_the_pose_there_is():
    simulator = Simulator(np.array([60.0, 70.0]), np.array([250.0, 180.0, 1.2]))
    np.testing.assert_allclose(simulator.agent, [60, 70])
    np.testing.assert_allclose(simulator.block, [250, 180, 1.2])
    simulator.step(simulator.agent)
    np.testing.assert_allclose(simulator.block, [250, 180, 1.2], atol=1e-6)


def test_pictures_are_the_simulators_own():
    import pygame

    simulator = Simulator(np.array([60.0, 70.0]), np.array([250.0, 180.0, 0.0]))
    ours, theirs = (pygame.surfarray.array3d(s).astype(int) for s in (simulator._render_world(), simulator._env._draw()))
    differing = (ours != theirs).any(-1)
    assert differing.mean() < 0.001  # the seam of bar and stem is drawn in any order


def test_pictures_show_agent_block_and_goal():
    image = Simulator(np.array([60.0, 70.0]), np.array([130.0, 380.0, 0.0])).render(64).astype(int)
    agent, block, goal = image[70 // 8, 60 // 8], image[394 // 8, 130 // 8], image[300 // 8, 225 // 8]
    assert image.shape == (64, 64, 3) and (image[20, 55] == 255).all()
    assert agent[2] > agent[0] + 100  # blue
    assert goal[1] > goal[0] + 50 and goal[1] > goal[2] + 50  # green
    assert np.ptp(block) < 60 and block.max() < 220  # grey


@pytest.mark.parametrize("contact", range(len(controller.POINTS)))
def test_pushes_move_the_block_as_predicted(contact):
    """Oracle: the simulator's physics."""
    block = np.array([250.0, 250.0, 0.7])
    normal = controller._rotate(block[2], controller.NORMALS[contact])
    touch = block[:2] + controller._rotate(block[2], controller.POINTS[contact])
    agent = touch + (controller.AGENT_RADIUS + 0.5) * normal
    simulator = Simulator(agent, block)
    for step in range(1, 31):
        simulator.step(agent - min(1.5 * step, 24.0) * normal)  # slowly, and the lag dies out
    found = controller.pose_error(simulator.block, controller.predict_push(block, 6)[6][contact])
    assert found < 4  # pixels, of 24 that it was pushed
    assert controller.pose_error(simulator.block, block) > 12


def test_paths_keep_off_the_block():
    rng = np.random.default_rng(0)
    for _ in range(20):
        block = np.array([*rng.uniform(180, 330, 2), rng.uniform(-3, 3)])
        obstacle = controller.hull(block)
        start, end = (p for p in rng.uniform(30, 480, (100, 2)) if controller.keeps_clear(p, block)), None
        start, end = next(start), next(start)
        path = controller.path_around(obstacle, start, end)
        np.testing.assert_allclose(path[[0, -1]], [start, end])
        inner = obstacle.buffer(-0.01)
        middles = (path[1:] + path[:-1]) / 2
        assert all(not inner.contains(controller._point(p)) for p in [*path, *middles])


@pytest.mark.parametrize("seed", range(4))
def test_the_controller_brings_the_block_home_without_a_rest(seed):
    simulator = Simulator(*recording.start_poses(np.random.default_rng(seed)))
    policy, covered, moved, before = controller.PushController(simulator.goal), 0.0, [], simulator.agent
    for _ in range(300):
        action = policy.act(simulator.agent, simulator.block)
        assert (action >= 0).all() and (action <= WORLD).all()
        assert np.linalg.norm(action - simulator.agent) < 2 * controller.LOOKAHEAD
        covered = simulator.step(action)
        moved.append(np.linalg.norm(simulator.agent - before))
        before = simulator.agent
        if covered > recording.SOLVED:
            break
    assert covered > recording.SOLVED
    assert np.mean(np.array(moved) > 3) > 0.9


def test_a_seed_decides_everything():
    for seed in ((0, 0, 0), (0, 0, 1)):
        first, again = (recording.record(seed, SIZE, Palette()) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = recording.record((1, 0, 1), SIZE, Palette())
    assert not np.array_equal(first.states, other.states)


def test_a_slide_is_one_push_and_shows_corrections(monkeypatch):
    """The block stands turned like the goal, nearer than 150 pixels; what is recorded is what the controller wanted,
    not what was executed."""
    poses = [recording.start_poses(np.random.default_rng(seed), "slide")[1] for seed in range(20)]
    gaps = np.array(poses) - GOAL
    assert (np.abs(gaps[:, 2]) <= 0.05).all() and (np.linalg.norm(gaps[:, :2], axis=1) < 150).all()
    monkeypatch.setattr(recording, "MAX_STEPS", 140)
    slide = recording.record((0, 0, 1), SIZE, Palette(), "slide")
    assert slide.solved and len(slide.images) < recording.MAX_STEPS
    simulator = Simulator(*recording.start_poses(np.random.default_rng((0, 0, 1)), "slide"))
    np.testing.assert_array_equal(
        slide.actions[0], np.float32(controller.PushController(simulator.goal).act(simulator.agent, simulator.block)))
    simulator.step(slide.actions[0])
    assert np.abs(simulator.agent - slide.states[1]).max() > 0.5  # the command that was executed was another


def test_worker_processes_make_the_same_episodes(monkeypatch):
    monkeypatch.setattr(recording, "MAX_STEPS", 140)  # spawned processes know no other
    jobs = [((0, 0, i), SIZE, "place") for i in range(2)]
    alone, pooled = (list(recorder.parallel(dataset.episode_steps, jobs, workers, "", lambda *_: None)) for workers in (1, 2))
    assert repr(alone) == repr(pooled)


def test_clips_have_colours_of_their_own():
    palettes = [recording.random_palette(np.random.default_rng(i)) for i in range(30)]
    assert len({caption for _, caption in palettes}) > 20
    for palette, caption in palettes:
        assert palette.background != (255, 255, 255) and palette.block != Palette().block
        assert len({palette.background, palette.block, palette.goal, palette.agent}) == 4
        assert len(caption.split()) <= 12


def test_episodes_are_in_rlds_layout(recorded):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(recorded / dataset.EPISODES_DIR))
    episodes = builder.as_data_source("train")
    assert len(episodes) == 3 and builder.info.file_format.value == "array_record"
    for i, episode in enumerate(episodes):
        steps, expected = list(episode["steps"]), recording.record((0, 0, i), SIZE, Palette())
        assert [s["is_first"] for s in steps] == [True] + [False] * (len(steps) - 1)
        assert [s["is_last"] for s in steps] == [False] * (len(steps) - 1) + [True]
        assert steps[-1]["is_terminal"] == expected.solved and steps[-1]["discount"] == (not expected.solved)
        np.testing.assert_array_equal([s["observation"]["image"] for s in steps], expected.images)
        np.testing.assert_array_equal([s["observation"]["state"] for s in steps], expected.states)
        np.testing.assert_array_equal([s["action"] for s in steps], expected.actions)


def test_clips_are_videos_with_captions(recorded):
    import av

    lines = [json.loads(line) for line in (recorded / dataset.CLIPS_DIR / "captions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["clip_0000.mp4", "clip_0001.mp4"]
    palette, caption = recording.random_palette(np.random.default_rng((0, 1, 1, 0)))
    assert lines[1]["caption"] == caption
    with av.open(str(recorded / dataset.CLIPS_DIR / "clip_0001.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.average_rate == RATE
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    drawn = recording.record((0, 1, 1), SIZE, palette).images
    assert frames.shape == drawn.shape and np.abs(frames.astype(int) - drawn).mean() < 6


def test_a_whole_recording_is_reused_and_a_half_written_one_is_not(recorded, tmp_path, monkeypatch):
    def asked(**changes):
        return {"episodes": 3, "clips": 2, "seed": 0, "image_size": SIZE, "workers": 1, **changes}

    before = {p: p.stat().st_mtime_ns for p in recorded.rglob("*")}
    assert not dataset.write(recorded, **asked())
    assert {p: p.stat().st_mtime_ns for p in recorded.rglob("*")} == before

    out = tmp_path / "data"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset, "_write_clips", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        dataset.write(out, **asked())
    assert not out.exists()
    assert dataset.write(out, **asked()) and not out.with_name("data.partial").exists()
    pairs = [(recorded / p.relative_to(out), p) for p in out.rglob("*.mp4")]
    assert len(pairs) == 2 and all(a.read_bytes() == b.read_bytes() for a, b in pairs)
    assert dataset.write(out, **asked(episodes=1, clips=1)) and len(list(out.rglob("*.mp4"))) == 1


def test_other_peoples_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="thesis.tex.*choose another directory"):
        dataset.write(tmp_path, episodes=1, clips=1, seed=0, image_size=SIZE, workers=1)
    assert (tmp_path / "thesis.tex").read_text() == "years"
    with pytest.raises(ValueError, match="image_size = 33: video files need an even number"):
        dataset.write(tmp_path / "new", episodes=1, clips=1, seed=0, image_size=33, workers=1)
