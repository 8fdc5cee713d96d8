"""What the guard changes, and that it counts each change."""

import numpy as np
import pytest

from data_pipelines.robots.embodiments import Dimension, Embodiment, get_embodiment
from launch.serving.safety import Guard

ROBOT = Embodiment(
    name="guarded", id=991, views=("image",), view_layout="single", rate=10.0,
    state=(Dimension("joint", 0), Dimension("width", 1)),
    action=(Dimension("joint", 0, low=-1, high=1, max_speed=2.0, moves="joint"), Dimension("width", 1, low=0, high=5)))


def check(actions, state=(0.0, 3.0), gap=None, **options):
    return Guard(ROBOT, **options).check(np.float32(actions), np.array(state), gap)


def test_what_is_safe_passes_untouched():
    actions = np.float32([[0.1, 0], [0.2, 5], [0.35, 1]])
    found = check(actions)
    np.testing.assert_array_equal(found.actions, actions)
    assert found.interventions == {"limit": 0, "speed": 0, "held": 0}


def test_limits_then_speed():
    """2 units a second at 10 Hz: 0.2 a step from the state on; the width may jump."""
    found = check([[3.0, -1], [3.0, 9], [-3.0, 2]])
    np.testing.assert_allclose(found.actions, [[0.2, 0], [0.4, 5], [0.2, 2]], atol=1e-6)
    assert found.interventions == {"limit": 5, "speed": 3, "held": 0}


def test_a_gap_holds_the_robot_where_it_is():
    held = Embodiment(**{**ROBOT.__dict__, "action": (ROBOT.action[0],)})
    guard = Guard(held, hold_gap=0.5)
    actions, state = np.float32([[0.1], [0.2]]), np.array([0.7, 3.0])
    np.testing.assert_allclose(guard.check(actions, state, 0.6).actions, [[0.7], [0.7]])
    assert guard.check(actions, state, 0.6).interventions["held"] == 2
    assert guard.check(actions, np.array([0.0, 3.0]), 0.4).interventions["held"] == 0
    assert guard.check(actions, np.array([0.0, 3.0]), None).interventions["held"] == 0
    with pytest.raises(ValueError, match="cannot be held: action 'width'"):
        Guard(ROBOT, hold_gap=0.5)


def test_pusht_stays_on_the_table():
    found = Guard(get_embodiment("pusht")).check(np.float32([[-20, 600]]), np.array([0.0, 0.0]), None)
    np.testing.assert_array_equal(found.actions, [[0, 512]])
