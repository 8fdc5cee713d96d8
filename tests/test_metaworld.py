"""Meta-World without a display: physics, experts, success and seeds for real; what is said where nothing can be drawn."""

import numpy as np
import pytest

from data_pipelines.embodiments import get_embodiment
from data_pipelines.metaworld import dataset, simulator
from data_pipelines.metaworld.simulator import TASKS, DisplayError, Simulator
from data_pipelines.metaworld.task import Episode

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


def test_no_display_is_a_sentence(monkeypatch):
    def missing():
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(simulator, "_context", missing)
    simulator._camera.cache_clear()
    with pytest.raises(DisplayError, match="apt-get install libosmesa6.*MUJOCO_GL=egl"):
        Simulator(BUTTON, 0).render(64)


def test_an_unknown_task_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="task = 'fly-v3' is unknown; there are button-press-topdown-v3, reach-v3"):
        dataset.write(tmp_path / "new", task="fly-v3", episodes=1, seed=0, image_size=64)
