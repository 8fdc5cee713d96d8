"""How public sets tell their actions, and what is made of it, on numbers that can be counted by hand."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.episode import BadEpisode
from data_pipelines.sources.conventions import CONVENTIONS, Conventional
from tests.fake_source import FakeSource


class Recordings(FakeSource):
    """One episode of six steps, told as wanted."""

    def __init__(self, action, state):
        super().__init__([len(action)])
        self.told = np.float32(action), np.float32(state)

    def __getitem__(self, index):
        return dataclasses.replace(super().__getitem__(index), action=self.told[0], state=self.told[1])


def of(convention, action, state):
    source = Conventional("set", Recordings(action, state), (convention,))
    return source, source[0].action


def test_bridge_moves_by_what_followed_and_begins_after_the_zero_step():
    state = np.cumsum(np.arange(42).reshape(6, 7), 0)
    action = np.full((6, 7), 9.0)
    action[:, -1] = [1.0, 0.5, 0.0, 0.4, 0.99, 0.6]
    source, found = of("openvla_bridge", action, state)
    np.testing.assert_array_equal(found[:-1, :6], np.diff(state, axis=0)[:, :6])
    np.testing.assert_array_equal(found[:, 6], [1, 0, 0, 1, 1, 0])  # on the way it is where it arrives
    assert source.stretches().tolist() == [[0, 1, 6]]


@pytest.mark.parametrize("told, expected", [
    ([0, 0, 1, 0, -1, 0], [1, 1, 0, 0, 1, 1]), ([0, -1, 0, 0.05, 1, 0], [0, 1, 1, 1, 0, 0]),
    ([0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1])])
def test_rt_1_grippers_are_where_they_were_told_to_go(told, expected):
    action = np.zeros((6, 7))
    action[:, -1] = told
    source, found = of("openvla_rt_1", action, np.zeros((6, 8)))
    np.testing.assert_array_equal(found[:, -1], expected)
    assert source.stretches().tolist() == [[0, 0, 6]] and source.lengths().tolist() == [6]


def test_the_next_action_leads_to_the_next_state():
    state = np.arange(12.0).reshape(6, 2)
    _, found = of("next_action", state, state)
    np.testing.assert_array_equal(found[:-1], state[1:])


def test_poses_become_relative_to_the_first():
    half = np.sqrt(0.5)
    turn = {0: (0, 0, 0, 1), 90: (0, 0, half, half), 180: (0, 0, 1, 0)}  # degrees about z
    action = np.array([[1, 2, 3, *turn[90], 0.5], [1, 2, 4, *turn[180], 1], [2, 2, 3, *(-np.array(turn[90])), 0]])
    _, found = of("first_pose", np.tile(action, 2), np.zeros((3, 0)))
    expected = [[0, 0, 0, *turn[0], 0.5], [0, 0, 1, *turn[90], 1], [1, 0, 0, *turn[0], 0]]
    np.testing.assert_allclose(found, np.tile(expected, 2), atol=1e-6)


def test_what_has_no_action_is_refused_and_a_name_corrected():
    source = Conventional("clips", FakeSource([5]), ("next_action",))
    source._source.__class__ = type("Clips", (FakeSource,), {
        "__getitem__": lambda self, i: dataclasses.replace(FakeSource.__getitem__(self, i), action=None)})
    with pytest.raises(BadEpisode, match="clips episode 0: conventions .* need an action"):
        source[0]
    with pytest.raises(ValueError, match="did you mean 'openvla_bridge'"):
        Conventional("set", FakeSource([5]), ("openvla_brige",))
    assert set(CONVENTIONS) == {"openvla_bridge", "openvla_rt_1", "next_action", "first_pose"}
