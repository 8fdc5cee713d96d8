"""DreamZero's and RoboArena's form on the wire, as the published server has it."""

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.client import connect

from launch.serving.engine import Answer
from launch.serving.messages import BadRequest
from launch.serving.protocols import DreamZero
from launch.serving.servable import choose_robot
from launch.serving.sessions import Sessions
from launch.setup.restore import restore
from tests import tiny_policy
from tests.serving import make_engine, serving


@pytest.fixture(scope="module")
def droid(tmp_path_factory):
    return make_engine(tmp_path_factory.mktemp("droid"), tiny_policy.DROID, sessions=2, batch_sizes=(1,))


def droid_request(seed: int, frames: int | None = None, **more) -> dict:
    rng = np.random.default_rng(seed)
    shape = (180, 320, 3) if frames is None else (frames, 180, 320, 3)
    return {"endpoint": "infer", "prompt": "pick up the cup",
            **{f"observation/{view}": rng.integers(0, 255, shape).astype(np.uint8)
               for view in ("exterior_image_0_left", "exterior_image_1_left", "wrist_image_left")},
            "observation/joint_position": rng.uniform(100, 400, 7), "observation/gripper_position": rng.uniform(100, 400, 1),
            "observation/cartesian_position": np.zeros(6), **more}


def test_dreamzero_protocol(droid):
    """Metadata first, infer and reset, a bare float32 [24, 8]; a session's frames are kept by the server."""
    with serving(droid, DreamZero(droid.robot)) as (port, _), \
            connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
        metadata = msgpack_numpy.unpackb(connection.recv())
        assert metadata == {"image_resolution": [180, 320], "needs_wrist_camera": True, "n_external_cameras": 2,
                            "needs_stereo_camera": False, "needs_session_id": True, "action_space": "joint_position"}

        def ask(request):
            connection.send(msgpack_numpy.packb(request))
            reply = connection.recv()
            return reply if isinstance(reply, str) else msgpack_numpy.unpackb(reply)

        def episode(first, later):
            assert ask({"endpoint": "reset"}) == "reset successful"
            return [ask(droid_request(first, session_id="s")), ask(droid_request(later, frames=4, session_id="s"))]

        first, second = episode(0, 1)
        for actions in (first, second):
            assert isinstance(actions, np.ndarray) and actions.shape == (24, 8) and actions.dtype == np.float32
        np.testing.assert_allclose(episode(0, 1), [first, second], rtol=1e-5)
        assert np.abs(episode(2, 1)[1] - second).max() > 0.1  # the cache holds the first frame
        assert "'endpoint' should be 'infer' or 'reset', found 'explode'" in ask({"endpoint": "explode"})
        assert "found uint8 [90, 320, 3]" in ask(droid_request(0) | {
            "observation/wrist_image_left": np.zeros((90, 320, 3), np.uint8)})
        assert "lacks 'observation/wrist_image_left'" in ask({k: v for k, v in droid_request(0).items() if "wrist" not in k})
        assert "joint_3 is inf" in ask(droid_request(0) | {"observation/joint_position": np.float64([1, 1, 1, np.inf] + 3 * [1])})
        assert "first message should be a reset or hold one frame" in ask(droid_request(0, frames=4, session_id="new"))
        assert "views should have as many frames each" in ask(droid_request(0) | {
            "observation/wrist_image_left": np.zeros((2, 180, 320, 3), np.uint8)})


def test_a_row_of_positions_will_do_as_well(droid):
    """[1, 7] and [1, 1], as the published server takes them."""
    protocol, request = DreamZero(droid.robot, prompt="pick"), droid_request(0)
    rows = {key: request[key][None] for key in ("observation/joint_position", "observation/gripper_position")}
    np.testing.assert_array_equal(protocol.parse(request | rows).state, protocol.parse(request).state)
    with pytest.raises(BadRequest, match=r"float32 \[7\] \(joint_0.*found float64 \[2, 7\]"):
        protocol.parse(request | {"observation/joint_position": np.zeros((2, 7))})


def test_dreamzero_protocol_refuses_another_embodiment(tmp_path):
    robot = choose_robot(restore(tiny_policy.write(tmp_path)), None, None)
    with pytest.raises(ValueError, match="speaks of 3 views, 8 state and 8 action .* 'pusht' of the checkpoint has 1, 2 and 2"):
        DreamZero(robot)


class Recorder:
    """In place of an engine: what is asked for."""

    def __init__(self, robot):
        self.robot, self.sessions, self.block_frames, self.last_block = robot, 2, 4, robot.layout.num_blocks

    def tokenize(self, prompt):
        return prompt


def test_a_session_sees_its_last_four_frames_the_oldest_repeated_in_front_of_fewer(droid):
    """One frame begins; later requests see exactly four; a full window, another prompt or a reset begin again at the
    newest frame; another session id has frames of its own."""
    protocol = DreamZero(droid.robot)
    sessions = Sessions(Recorder(droid.robot), per_connection=2, remembers=protocol.remembers)

    def frame(value):
        return {f"observation/{view}": np.full((180, 320, 3), value, np.uint8)
                for view in ("exterior_image_0_left", "exterior_image_1_left", "wrist_image_left")}

    def ask(values, session="a", prompt="pick"):
        """(block, what of the wrist's frames is seen)."""
        stacked = {key: np.stack([frame(v)[key] for v in values]) for key in frame(0)}
        observation = protocol.parse(droid_request(0, session_id=session, prompt=prompt) | stacked)
        planned, request = sessions.plan(observation, "connection")
        sessions.done(planned, observation, request, Answer(np.zeros((24, 8)), None, None, {}))
        planned.busy = False
        return request.block, request.views["wrist"][:, 0, 0, 0].tolist()

    assert ask([1]) == (1, [1])
    assert ask([2]) == (2, [1, 1, 1, 2])
    assert ask([3, 4, 5, 6]) == (1, [6])  # two blocks are a window here
    assert ask([7, 8]) == (2, [5, 6, 7, 8])
    sessions.end("a", "connection")
    assert ask([9]) == (1, [9]) and ask([10], session="b") == (1, [10])
    assert ask([11]) == (2, [9, 9, 9, 11])
    assert ask([12], session="b", prompt="place") == (1, [12])
