"""What the guard changes, and that it counts each change."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.robots.embodiments import BUILT_IN, EMBODIMENTS, Dimension, Embodiment, get_embodiment
from launch.serving.safety import Guard, limits, unlimited

ROBOT = Embodiment(
    name="guarded", id=991, views=("image",), view_layout="single", rate=10.0,
    state=(Dimension("joint", 0), Dimension("width", 1)),
    action=(Dimension("joint", 0, low=-1, high=1, max_speed=2.0, moves="joint"), Dimension("width", 1, low=0, high=5)))
HELD = dataclasses.replace(ROBOT, action=(ROBOT.action[0],))


def check(actions, state=(0.0, 3.0), gap=None, robot=ROBOT, hold_gap=None, **before):
    return Guard(robot, hold_gap).check(np.float32(actions), np.array(state), gap, **before)


def test_what_is_safe_passes_untouched():
    actions = np.float32([[0.1, 0], [0.2, 5], [0.35, 1]])
    found = check(actions)
    np.testing.assert_array_equal(found.actions, actions)
    assert found.interventions == {"limit": 0, "speed": 0, "held": 0} and not found.held


def test_limits_then_speed():
    """2 units a second at 10 Hz: 0.2 a step from the state on; the width may jump."""
    found = check([[3.0, -1], [3.0, 9], [-3.0, 2]])
    np.testing.assert_allclose(found.actions, [[0.2, 0], [0.4, 5], [0.2, 2]], atol=1e-6)
    assert found.interventions == {"limit": 5, "speed": 3, "held": 0}


def test_the_first_step_is_limited_from_the_last_command():
    """From the state where the robot may have been moved meanwhile, and says where it is."""
    last, actions = np.array([0.5, 1.0]), [[-1.0, 4], [-1.0, 4]]
    np.testing.assert_allclose(check(actions, last=last, executed=True).actions[:, 0], [0.3, 0.1], atol=1e-6)
    np.testing.assert_allclose(check(actions, last=last).actions[:, 0], [-0.2, -0.4], atol=1e-6)
    blind = dataclasses.replace(ROBOT, action=(dataclasses.replace(ROBOT.action[0], moves=None), ROBOT.action[1]))
    for executed in (True, False):
        found = check(actions, robot=blind, last=last, executed=executed)
        np.testing.assert_allclose(found.actions[:, 0], [0.3, 0.1], atol=1e-6)
    assert check(actions, robot=blind).interventions["speed"] == 0  # nothing is known before an episode's first command


def test_a_gap_holds_the_robot_where_it_is():
    actions, state = [[0.1], [0.2]], np.array([0.7, 3.0])
    found = check(actions, state, 0.6, HELD, 0.5)
    np.testing.assert_allclose(found.actions, [[0.7], [0.7]])
    assert found.held and found.interventions == {"limit": 0, "speed": 0, "held": 2}
    assert not check(actions, [0.0, 3.0], 0.4, HELD, 0.5).held and not check(actions, [0.0, 3.0], None, HELD, 0.5).held
    assert check(actions, state, float("nan"), HELD, 0.5).held  # a gap that is no number explains nothing
    outside = check(actions, [1.5, 3.0], 0.6, HELD, 0.5)
    np.testing.assert_allclose(outside.actions, [[1.0], [1.0]])
    assert outside.interventions == {"limit": 2, "speed": 0, "held": 2}


def test_a_held_robot_stays_held_until_a_gap_lets_it_go():
    state = [0.0, 3.0]
    assert check([[0.1]], state, None, HELD, 0.5, held=True).held
    assert not check([[0.1]], state, 0.5, HELD, 0.5, held=True).held
    assert not check([[0.1]], state, None, HELD, None).held


@pytest.mark.parametrize("gap", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_gap_to_hold_above_is_a_number(gap):
    with pytest.raises(ValueError, match="expected a positive, finite gap"):
        Guard(HELD, gap)
    with pytest.raises(ValueError, match="cannot be held: action 'width'"):
        Guard(ROBOT, hold_gap=0.5)


def test_pusht_stays_on_the_table():
    found = Guard(get_embodiment("pusht")).check(np.float32([[-20, 600]]), np.array([0.0, 0.0]), None)
    np.testing.assert_array_equal(found.actions, [[0, 512]])


def test_droid_stays_inside_the_makers_limits():
    """Joint 4 cannot be stretched, joint 1 turns 2.175 rad/s at most, at 15 Hz."""
    state = np.array([0.0, 0, 0, -2.0, 0, 1.5, 0, 0.5])
    found = Guard(get_embodiment("droid")).check(np.float32([[2, 0, 0, 0, 0, 1.5, 0, 1.4]]), state, None)
    np.testing.assert_allclose(found.actions[0], [0.145, 0, 0, -1.855, 0, 1.5, 0, 1.0], atol=1e-6)
    assert found.interventions == {"limit": 2, "speed": 2, "held": 0}


def test_what_is_not_limited_is_said():
    assert limits(ROBOT) == {"joint": {"low": -1, "high": 1, "max_speed": 2.0}, "width": {"low": 0, "high": 5}}
    assert unlimited(ROBOT) == "embodiment 'guarded' declares no maximum speed for width: there the guard changes nothing"
    assert unlimited(HELD) == ""
    assert "no range for dx, dy, dz" in (said := unlimited(get_embodiment("widowx"))) and "(commands are differences" in said
    for robot in EMBODIMENTS.values():  # who declares nothing is told of
        whole = all({"low", "high", "max_speed"} <= found.keys() for found in limits(robot).values())
        assert bool(unlimited(robot)) != whole, robot.name
        assert robot.name not in BUILT_IN or bool(robot.unlimited) != whole, f"{robot.name} does not say why it limits less"
