"""Meta-World without a display: physics, experts, success and seeds for real; what is said where nothing can be rendered."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.simulators.metaworld import dataset, simulator
from data_pipelines.simulators.metaworld.simulator import TASKS, DisplayError, Simulator
from data_pipelines.simulators.metaworld.task import Episode

BUTTON = "button-press-topdown-v3"


def solve(episode: Episode) -> list[np.ndarray]:
    """States while the expert acts."""
    states = [episode.state()]
    while not episode.over:
        episode.step(episode.expert())
        states.append(episode.state())
    return states


@pytest.mark.parametrize("task", [BUTTON, "reach-v3"])
def test_the_expert_solves_it_and_standing_still_does_not(task):
    for seed in range(3):
        expert, idle = (Episode(task, seed, 64, max_steps=40) for _ in range(2))
        solve(expert)
        assert expert.solved and expert.coverage[-1] > expert.coverage[0] and max(expert.coverage) <= 1
        while not idle.over:
            idle.step(idle.still())
        assert not idle.solved and len(idle.coverage) == 40


def test_a_seed_decides_everything_and_worlds_do_not_touch_each_other():
    alone = solve(Episode(BUTTON, 1, 64))
    first, other = Episode(BUTTON, 1, 64), Episode(BUTTON, 2, 64)
    together = [first.state()]
    while not first.over:
        other.step(np.array([1.0, 1.0, 0.0, 0.0]))
        first.step(first.expert())
        together.append(first.state())
    np.testing.assert_array_equal(alone, together)
    assert not np.allclose(other.expert(), Episode(BUTTON, 1, 64).expert())


def test_a_command_moves_the_hand_its_way_for_four_steps():
    robot, world = get_embodiment("metaworld_20hz"), Simulator(BUTTON, 0)
    before = world.state
    for _ in range(3):
        world.step(np.array([0.5, 0.0, 0.5, 1.0]))
    moved = world.state - before
    assert len(robot.state) == len(robot.action) == len(before) == 4 and robot.rate == simulator.RATE
    # 3 commands x 4 steps x 0.5 cm, less what the hand lags behind
    assert 0.03 < moved[0] < 0.07 and 0.03 < moved[2] < 0.07 and abs(moved[1]) < 0.02


def test_what_is_recorded(monkeypatch):
    """Drawing is replaced: it needs a system library."""
    monkeypatch.setattr(Simulator, "render", lambda self, size: np.full((size, size, 3), 7, np.uint8))
    recording, again = (dataset.record(BUTTON, (0, 0, 3), 16) for _ in range(2))
    assert recording.solved and recording.instruction == TASKS[BUTTON].instruction
    assert recording.images.shape == (len(recording.states), 16, 16, 3) and recording.states.dtype == np.float32
    assert np.abs(recording.actions).max() <= 1 and (recording.actions[:, 3] == 1).all()
    np.testing.assert_array_equal(recording.states, again.states)
    assert len(recording.images) < 40 and not np.array_equal(recording.states[0], recording.states[-1])


@pytest.mark.parametrize("task", [BUTTON, "reach-v3"])
def test_another_look_changes_colours_alone(task):
    plain, green, again = (Simulator(task, 3, look) for look in ("plain", "green", "plain"))
    for _ in range(3):
        for world in (plain, green, again):
            world.step(world.expert())
    np.testing.assert_array_equal(plain.state, green.state)
    colours = [world._env.model.mat_rgba for world in (plain, green, again)]
    changed = (colours[0] != colours[1]).any(1)
    names = {plain._env.model.mat(i).name for i in np.flatnonzero(changed)}
    assert "table_wood" in names and len(names) < len(changed)
    np.testing.assert_array_equal(colours[0], colours[2])  # worlds do not touch each other
    assert green._env.model.light_diffuse.max() < plain._env.model.light_diffuse.min()


def test_repeated_placements_differ_by_the_hand_alone(monkeypatch):
    monkeypatch.setattr(Simulator, "render", lambda self, size: np.zeros((size, size, 3), np.uint8))
    jobs = []
    monkeypatch.setattr(dataset, "parallel", lambda make, given, *_, **__: jobs.extend(given))
    monkeypatch.setattr(dataset, "write_once", lambda out, recipe, parts, make: make(out))
    monkeypatch.setattr(dataset, "write_rlds", lambda *_: None)
    dataset.write(Path("out"), task=BUTTON, episodes=4, seed=7, image_size=16, placements=2)
    one, other, same = (dataset.record(*job) for job in jobs[:3])
    ends = [recording.states[-1, :3] for recording in (one, other, same)]
    np.testing.assert_allclose(ends[0], ends[2], atol=0.01)  # the same button
    assert np.abs(ends[0] - ends[1]).max() > 0.02 and not np.allclose(one.states[0], same.states[0])


def test_no_display_is_a_sentence(monkeypatch):
    def missing():
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(simulator, "_context", missing)
    simulator._renderer.cache_clear()
    with pytest.raises(DisplayError, match="apt-get install libosmesa6.*MUJOCO_GL=egl"):
        Simulator(BUTTON, 0).render(64)


def test_an_unknown_task_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="look = 'gren' is unknown; there are plain, green"):
        dataset.write(tmp_path / "new", task=BUTTON, episodes=1, seed=0, image_size=64, look="gren")
    with pytest.raises(ValueError, match="task = 'fly-v3' is unknown; there are button-press-topdown-v3, reach-v3"):
        dataset.write(tmp_path / "new", task="fly-v3", episodes=1, seed=0, image_size=64)
