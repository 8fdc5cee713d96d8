"""Tasks at tables without a display: physics, experts, success and seeds for real; what is said where nothing can be
rendered. ogbench's tasks are left out where it is not installed."""


import numpy as np
import pytest

from configs import tabletop
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.simulators.tabletop import dataset, metaworld, rendering
from data_pipelines.simulators.tabletop.episode import Episode
from data_pipelines.simulators.tabletop.rendering import DisplayError
from data_pipelines.simulators.tabletop.tasks import PARTS, TASKS, make_world
from data_pipelines.windows import split_episodes, take_share

BUTTON, CUBE = "button-press-topdown-v3", "ogbench-cube"
each = pytest.mark.parametrize("task", (BUTTON, "reach-v3", "push-v3", "peg-insert-side-v3", "ogbench-button",
                                       "ogbench-drawer"))


@pytest.fixture
def black(monkeypatch):
    """Drawing is replaced: it needs a system library."""
    for module in ("metaworld", "ogbench"):
        monkeypatch.setattr(f"data_pipelines.simulators.tabletop.{module}.render",
                            lambda model, data, camera, size: np.full((size, size, 3), 7, np.uint8))


def solve(episode: Episode) -> list[np.ndarray]:
    """States while the expert acts."""
    states = [episode.state()]
    while not episode.over:
        episode.step(episode.expert())
        states.append(episode.state())
    return states


@each
def test_the_expert_solves_it_and_standing_still_does_not(task):
    robot = get_embodiment(TASKS[task].embodiment)
    for seed in (0, 2):
        expert, idle = (Episode(task, seed, 64) for _ in range(2))
        assert (len(idle.state()), len(idle.still())) == (len(robot.state), len(robot.action)) and robot.rate == 20
        solve(expert)
        assert expert.solved and expert.coverage[-1] > expert.coverage[0] and max(expert.coverage) <= 1
        assert len(expert.coverage) < TASKS[task].steps
        for _ in range(12):
            idle.step(idle.still())
        assert not idle.solved and not idle.over


def test_an_arm_that_wanders_goes_where_no_picture_tells_and_is_kept_whatever_it_does(black):
    """From one placement two episodes part at once; both last to the end, solved or not."""
    first, second = (dataset.record("push-v3", (seed,), 16, placement=(7,), wander=True) for seed in (0, 1))
    (first, attempts), (second, _) = first, second
    assert attempts == 1 and len(first.actions) == len(second.actions) == TASKS["push-v3"].steps
    assert np.linalg.norm(first.actions[:4] - second.actions[:4]) > 0.5
    held = (np.diff(first.actions, axis=0) == 0).all(1)
    assert 0 < held.sum() < len(held)  # a command that is held for a while, and others


@each
def test_a_seed_decides_everything_and_worlds_do_not_touch_each_other(task):
    alone = solve(Episode(task, 1, 64))
    first, other = Episode(task, 1, 64), Episode(task, 2, 64)
    together = [first.state()]
    while not first.over:
        other.step(np.ones(len(other.still())) * 0.5)
        first.step(first.expert())
        together.append(first.state())
    np.testing.assert_array_equal(alone, together)
    assert not np.allclose(other.expert(), Episode(task, 1, 64).expert())


def test_a_command_moves_the_hand_its_way_for_four_steps():
    robot, world = get_embodiment("metaworld_20hz"), make_world(BUTTON, 0)
    before = world.state
    for _ in range(3):
        world.step(np.array([0.5, 0.0, 0.5, 1.0]))
    moved = world.state - before
    assert len(robot.state) == len(robot.action) == len(before) == 4
    # 3 commands x 4 steps x 0.5 cm, less what the hand lags behind
    assert 0.03 < moved[0] < 0.07 and 0.03 < moved[2] < 0.07 and abs(moved[1]) < 0.02


def test_an_ogbench_command_turns_and_closes_the_hand():
    world = make_world(CUBE, 0)
    before = world.state
    for _ in range(4):
        world.step(np.array([0.0, 0.0, 0.0, 1.0, 1.0]))
    turned = np.arctan2(world.state[4], world.state[3]) - np.arctan2(before[4], before[3])
    assert 0.2 < turned % (2 * np.pi) < 1.2 and world.state[5] > before[5] + 0.3
    np.testing.assert_allclose(world.state[:3], before[:3], atol=0.03)


def test_an_ogbench_task_is_a_scene_that_asks_for_it():
    for seed in range(3):
        said = make_world("ogbench-button", seed)._info
        red = [i for i in (0, 1) if said[f"privileged/button_{i}_state"] == 0]
        assert red == [said["privileged/target_button"]]  # the only one, so that a picture says which
        drawer = make_world("ogbench-drawer", seed)._info
        assert drawer["privileged/drawer_pos"] >= -0.08 and drawer["privileged/button_0_state"] == 1
    assert not np.allclose(make_world(CUBE, 5).state, make_world(CUBE, 6).state)


def test_what_is_recorded(black):
    (recording, attempts), (again, _) = (dataset.record(BUTTON, (0, 0, 3), 16) for _ in range(2))
    assert recording.solved and attempts == 1 and recording.instruction == TASKS[BUTTON].instruction
    assert recording.images.shape == (len(recording.states), 16, 16, 3) and recording.states.dtype == np.float32
    assert np.abs(recording.actions).max() <= 1 and (recording.actions[:, 3] == 1).all()
    np.testing.assert_array_equal(recording.states, again.states)
    assert len(recording.images) < 40 and not np.array_equal(recording.states[0], recording.states[-1])


def test_noise_is_recorded_as_it_was_executed_and_still_solves(black):
    clean, noisy, again = (dataset.record(BUTTON, (0, 0, 3), 16, noise=noise)[0] for noise in (0.0, 0.5, 0.5))
    np.testing.assert_array_equal(noisy.actions, again.actions)
    np.testing.assert_array_equal(noisy.states[0], clean.states[0])  # the same start
    assert noisy.solved and (noisy.actions[:, 3] == 1).all()  # the gripper, which this robot does not learn, is still
    assert 0.02 < np.abs(noisy.actions[0, :3] - clean.actions[0, :3]).max() < 1


def test_a_demonstration_that_fails_is_made_again(black, monkeypatch):
    made = dataset._attempt
    seeds = []

    def fails_twice(task, seed, *rest):
        seeds.append(seed)
        return made(task, seed, *rest)._replace(solved=len(seeds) > 2)

    monkeypatch.setattr(dataset, "_attempt", fails_twice)
    recording, attempts = dataset.record(BUTTON, (0, 0, 3), 16)
    assert recording.solved and attempts == 3 and seeds == [(0, 0, 3), (0, 0, 3, 1), (0, 0, 3, 2)]
    monkeypatch.setattr(dataset, "ATTEMPTS", 2)
    monkeypatch.setattr(dataset, "_attempt", lambda *given: made(*given)._replace(solved=False))
    with pytest.raises(ValueError, match=r"button-press-topdown-v3, seed \(0, 0, 3\): the expert failed 2 times with noise = 0.1"):
        dataset.record(BUTTON, (0, 0, 3), 16, noise=0.1)


@pytest.mark.parametrize("task", [BUTTON, "reach-v3"])
def test_another_look_changes_colours_alone(task):
    plain, green, again = (make_world(task, 3, look) for look in ("plain", "green", "plain"))
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


@each
def test_another_camera_sees_the_same_world(task, monkeypatch):
    seen = []
    for module in ("metaworld", "ogbench"):
        monkeypatch.setattr(f"data_pipelines.simulators.tabletop.{module}.render",
                            lambda model, data, camera, size: seen.append((camera, data.qpos.copy())))
    for look in ("plain", "green", "turned"):
        make_world(task, 3, look).render(16)
    (plain, there), (green, _), (turned, same) = seen
    assert plain == green == TASKS[task].camera != turned == TASKS[task].turned
    np.testing.assert_array_equal(there, same)


def test_repeated_placements_differ_by_the_hand_alone(black, monkeypatch):
    jobs = []
    monkeypatch.setattr(dataset, "parallel", lambda make, given, *_, **__: jobs.extend(given))
    monkeypatch.setattr(dataset, "write_once", lambda out, recipe, parts, make: make(out))
    monkeypatch.setattr(dataset, "write_rlds", lambda *_: None)
    dataset.write(dataset.Path("out"), task=BUTTON, episodes=4, seed=7, image_size=16, placements=2)
    one, other, same = (dataset.record(*job)[0] for job in jobs[:3])
    ends = [recording.states[-1, :3] for recording in (one, other, same)]
    np.testing.assert_allclose(ends[0], ends[2], atol=0.01)  # the same button
    assert np.abs(ends[0] - ends[1]).max() > 0.02 and not np.allclose(one.states[0], same.states[0])


def test_no_display_is_a_sentence(monkeypatch):
    def missing():
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(rendering, "_context", missing)
    rendering._renderer.cache_clear()
    with pytest.raises(DisplayError, match="apt-get install libosmesa6.*MUJOCO_GL=egl"):
        metaworld.World(BUTTON, 0).render(64)


def test_an_unknown_task_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="look = 'gren' is unknown; there are plain, green, turned"):
        dataset.write(tmp_path / "new", task=BUTTON, episodes=1, seed=0, image_size=64, look="gren")
    with pytest.raises(ValueError, match="task = 'fly-v3' is unknown; there are button-press-topdown-v3, reach-v3"):
        dataset.write(tmp_path / "new", task="fly-v3", episodes=1, seed=0, image_size=64)


def test_the_config_knows_the_tasks_and_gives_actions_to_as_many_episodes_as_it_says():
    for name, (simulator, embodiment) in tabletop.TASKS.items():
        assert (TASKS[name].simulator, TASKS[name].embodiment) == (simulator, embodiment)
    for labelled in tabletop.LABELLED:
        config = tabletop.get_config(f"push-v3,{labelled},green")
        assert PARTS["labelled"]["episodes"] == PARTS["noisy"]["episodes"] == 57
        training, _ = split_episodes("labelled", np.arange(57), config.data.holdout)
        assert len(take_share("labelled", training, config.data.datasets.labelled.share)) == int(labelled)
        assert config.data.datasets.clips.path == ".cache/tabletop/push-v3/green/metaworld_rlds"
    assert list(tabletop.get_config("ogbench-cube").data.datasets) == ["labelled"]


@pytest.mark.parametrize("arg, said", [("fly-v3", "'fly-v3' is none of soccer-v3"), ("push-v3,7", "'7' is none of 5, 15, 50"),
                                       ("push-v3,5,blue", "'blue' is none of")])
def test_an_unknown_argument_is_answered_with_those_there_are(arg, said):
    with pytest.raises(ValueError, match=said):
        tabletop.get_config(arg)
