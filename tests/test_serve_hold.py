"""What the guard knows of a robot outlives a window, a reset, a connection and a failure of the model."""

import contextlib
import dataclasses

import numpy as np
import pytest

from data_pipelines.robots.embodiments import get_embodiment
from launch.serving.safety import Guard
from tests.serving import client, observation, serving

PUSHT = get_embodiment("pusht")


def ask(policy, **more) -> tuple[bool, np.ndarray, np.ndarray]:
    """(whether it was held, commands, the state that was sent)."""
    sent = observation(**{"session_id": "robot"} | more)
    reply = policy.infer(sent)
    return reply["interventions"]["held"] > 0, reply["actions"], sent["observation/state"]


@pytest.fixture
def held(engine, monkeypatch):
    """(port, a client whose robot is held: no gap is as small as the guard wants)."""
    monkeypatch.setattr(engine, "guard", Guard(PUSHT, hold_gap=1e-6))
    with serving(engine) as (port, _):
        policy = client(port)
        assert not ask(policy)[0]  # a first frame tells no gap
        was_held, actions, state = ask(policy, frames=4)
        assert was_held
        np.testing.assert_allclose(actions, np.tile(state, (4, 1)))
        yield port, policy


def test_no_new_window_lets_a_held_robot_go(held):
    """A window that is full begins anew, as one does after a single frame or a reset: none of them has a gap."""
    port, policy = held
    assert ask(policy, frames=4)[0]  # two blocks are a window here
    assert ask(policy)[0] and ask(policy, reset=True)[0] and ask(policy, frames=4)[0]
    with contextlib.closing(client(port)._ws):
        assert not ask(client(port), session_id="another robot")[0]
    policy._ws.close()
    again = client(port)
    assert ask(again)[0] and ask(again, reset=True)[0]
    assert not ask(again, release=True)[0] and not ask(again)[0]  # somebody has looked, and lets it go
    assert ask(again, frames=4)[0]  # and what is still not understood holds it again


def test_evicted_and_failed_sessions_stay_held(held, engine, monkeypatch):
    _, policy = held
    for i in range(8):
        ask(policy, session_id=f"other {i}")  # the connection's own sessions make room
    assert ask(policy)[0]

    def fails(requests):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "step", fails)
        with pytest.raises(RuntimeError, match="all sessions begin again"):
            ask(policy)
    assert ask(policy)[0]


def test_a_small_gap_lets_it_go(held, engine, monkeypatch):
    _, policy = held
    ask(policy)
    monkeypatch.setattr(engine, "guard", Guard(PUSHT, hold_gap=1e6))
    assert ask(policy, reset=True)[0]  # no gap yet
    assert not ask(policy, frames=4)[0] and not ask(policy)[0]


def test_a_gap_that_is_no_number_holds(engine, monkeypatch):
    plain = engine.policy.observe
    monkeypatch.setattr(engine, "guard", Guard(PUSHT, hold_gap=1e6))
    monkeypatch.setattr(engine.policy, "observe", lambda *args: plain(*args) * np.nan)
    with serving(engine) as (port, server):
        policy = client(port)
        ask(policy)
        assert ask(policy, frames=4)[0]
        assert np.isnan(server.live.latest.served.answer.gap)


@pytest.mark.parametrize("again", [dict(frames=4), dict(), dict(reset=True)])
def test_speed_is_limited_across_chunks(engine, monkeypatch, again):
    """5 units a second at 10 Hz, of a robot that does not say where it is: 0.5 from the last command on."""
    action = tuple(dataclasses.replace(d, moves=None, max_speed=5.0) for d in PUSHT.action)
    monkeypatch.setattr(engine, "guard", Guard(dataclasses.replace(PUSHT, action=action)))
    with serving(engine) as (port, _):
        policy = client(port)
        _, first, _ = ask(policy)
        _, second, _ = ask(policy, seed=3, **again)
    steps = np.abs(np.diff(np.concatenate([first, second]), axis=0))
    assert steps.max() < 0.5001 and steps[3].max() > 0.4999  # the model wanted more


def test_where_a_chunk_was_executed_the_command_counts_and_elsewhere_the_state(engine, monkeypatch):
    action = tuple(dataclasses.replace(d, max_speed=5.0) for d in PUSHT.action)
    monkeypatch.setattr(engine, "guard", Guard(dataclasses.replace(PUSHT, action=action)))
    with serving(engine) as (port, _):
        policy = client(port)
        _, first, state = ask(policy)
        assert np.abs(first[0] - state).max() < 0.5001
        _, second, _ = ask(policy, seed=3, frames=4)
        assert np.abs(second[0] - first[-1]).max() < 0.5001
        _, third, state = ask(policy, seed=5)
        assert np.abs(third[0] - state).max() < 0.5001  # it may have been moved meanwhile
        flight = {"actions_in_flight": state[None] + np.float32([[20, 30]])}
        _, fourth, _ = ask(policy, seed=5, **flight)
        assert np.abs(fourth[0] - flight["actions_in_flight"][0]).max() < 0.5001


def test_a_robot_of_a_short_horizon_goes_on_as_it_was_trained(engine, monkeypatch):
    """Its answers are shorter than a block; the model is told of a whole block, with nothing past the horizon."""
    told, observe = [], engine.policy.observe
    monkeypatch.setattr(engine, "robot", dataclasses.replace(
        engine.robot, embodiment=dataclasses.replace(PUSHT, horizon=3)))
    monkeypatch.setattr(engine.policy, "observe", lambda *given: told.append(given[2]) or observe(*given))
    with serving(engine) as (port, _):
        policy = client(port)
        _, actions, state = ask(policy)
        assert actions.shape == (3, 2)
        assert ask(policy, frames=4)[1].shape == (3, 2)
    assert told[0].shape == (1, 4, engine._nothing.shape[1]) and not told[0][0, 3].any()
    np.testing.assert_array_equal(told[0][0, :3], engine.robot.predicted(actions, state, told[0].shape[2]))
    assert told[0][0, :3].any()
