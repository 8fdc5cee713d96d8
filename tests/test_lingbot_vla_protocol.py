"""LingBot-VLA's form on the wire, as its published client has it: a reset, then pictures, state and task, and a chunk."""

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.client import connect

from configs.recipes import robotwin_lingbot_vla
from launch.serving.engine import Engine
from launch.serving.protocols import LingBotVLA
from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from tests import tiny_policy
from tests.serving import serving

CAMERAS = [f"observation.images.cam_{name}" for name in ("high", "left_wrist", "right_wrist")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    c = robotwin_lingbot_vla.get_config("debug")
    c.layout.update(height=16, width=16)
    c.evaluate.solver_steps = 2
    restored = restore(tiny_policy.write_config(tmp_path_factory.mktemp("run"), c, "robotwin_joints_75"))
    return Engine(restored, choose_robot(restored, None, None), sessions=2, batch_sizes=(1,))


def request(seed: int = 0, **more) -> dict:
    rng = np.random.default_rng(seed)
    pictures = {key: rng.integers(0, 255, (24, 32, 3)).astype(np.uint8) for key in CAMERAS}
    return pictures | {"observation.state": np.full(14, 250.0, np.float32), "task": "lift the pot"} | more


def test_a_published_client_is_served_and_told_what_is_wrong(engine):
    with serving(engine, LingBotVLA(engine.robot)) as (port, server), \
            connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, ping_interval=None) as connection:
        metadata = msgpack_numpy.unpackb(connection.recv())
        assert metadata["images"] == CAMERAS and metadata["action"] == [8, 14]
        assert metadata["names"][6] == "left_gripper"

        def send(message):
            connection.send(msgpack_numpy.packb(message))
            reply = connection.recv()
            return reply if isinstance(reply, str) else msgpack_numpy.unpackb(reply)

        assert send({"reset": True, "robo_name": "aloha", "path_to_pi_model": None}) == {"action": None}
        actions = send(request())["action"]
        assert actions.shape == (8, 14) and actions.dtype == np.float32 and np.isfinite(actions).all()
        np.testing.assert_array_equal(actions, server.live.latest.served.answer.actions)
        assert actions[:, 6].min() >= 0 and actions[:, 6].max() <= 1  # the guard keeps grippers in their range
        assert np.abs(send(request(seed=1))["action"] - actions).max() > 1e-3
        missing = request()
        del missing[CAMERAS[0]]
        for wrong, message in ((missing, f"lacks '{CAMERAS[0]}'"), ([1], "is a map of names to values, found list"),
                               (request(task=3), "'task' should be a text"),
                               ({key: x for key, x in request().items() if key != "task"}, "lacks 'task'"),
                               (request(**{"observation.state": np.zeros(7, np.float32)}), r"float32 [14]"),
                               (request(**{CAMERAS[1]: np.zeros((24, 32, 3), np.float32)}), "should be uint8"),
                               (request(**{CAMERAS[1]: np.zeros((700, 32, 3), np.uint8)}), "at most 480")):
            assert message in send(wrong)
        assert send(request())["action"].shape == (8, 14)
