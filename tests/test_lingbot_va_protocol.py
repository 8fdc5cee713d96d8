"""LingBot-VA's form on the wire, as its published client has it: reset, a chunk, what was seen and done, the next one."""

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.client import connect

from launch.serving.engine import Engine
from launch.serving.protocols import LingBotVA
from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from tests import tiny_policy
from tests.serving import serving

CAMERAS = [f"observation.images.cam_{name}" for name in ("high", "left_wrist", "right_wrist")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    restored = restore(tiny_policy.write(tmp_path_factory.mktemp("run"), "robotwin_dual_arm", "lingbot_va_debug"))
    return Engine(restored, choose_robot(restored, None, None), sessions=2, batch_sizes=(1,))


def seen(seed: int) -> dict:
    """What a simulator sends; its server reads the cameras alone."""
    rng = np.random.default_rng(seed)
    sizes = zip(CAMERAS, ((48, 64), (24, 32), (24, 32)), strict=True)
    return {key: rng.integers(0, 255, (*size, 3)).astype(np.uint8) for key, size in sizes} | {
        "observation.state": np.zeros(14), "task": "lift"}


class Client:
    """The published client's requests."""

    def __init__(self, connection):
        self.connection, self.metadata = connection, msgpack_numpy.unpackb(connection.recv())

    def send(self, message):
        self.connection.send(msgpack_numpy.packb(message))
        reply = self.connection.recv()
        return reply if isinstance(reply, str) else msgpack_numpy.unpackb(reply)

    def ask(self, **request):
        return self.send(request | {"session_id": "one noise"})

    def episode(self, later: int = 1, moved: float = 0.0) -> list[np.ndarray]:
        """The actions of two chunks."""
        assert self.ask(reset=True, prompt="lift the pot", save_visualization=False) == {}
        first = self.ask(obs=seen(0), prompt="lift the pot", save_visualization=False, video_guidance_scale=5,
                         action_guidance_scale=1)["action"]
        keyframes = [seen(10 * later + i) for i in range(4)]
        assert self.ask(obs=keyframes, compute_kv_cache=True, imagine=False, state=first + np.float32(moved)) == {}
        return [first, self.ask(obs=seen(0))["action"]]


def test_a_published_client_is_served(engine):
    """[dims, K, n], a frame of zeros in front of the first chunk; what was seen and executed is what counts."""
    with serving(engine, LingBotVA(engine.robot, prompt=None)) as (port, _), \
            connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, ping_interval=None) as connection:
        client = Client(connection)
        assert client.metadata["obs"] == CAMERAS and client.metadata["action"] == [16, 1, 4]
        assert "no range for any action and no maximum speed" in client.metadata["guard"]["warning"]
        first, second = client.episode()
        assert first.shape == (16, 2, 4) and second.shape == (16, 1, 4) and first.dtype == np.float32
        assert not first[:, 0].any() and first[:, 1].mean() > 50  # robot units: the training data's 100 to 400
        np.testing.assert_allclose(client.episode()[1], second, rtol=1e-4)
        for other in (client.episode(later=2), client.episode(moved=100.0)):
            np.testing.assert_allclose(other[0], first, rtol=1e-4)
            assert np.abs(other[1] - second).max() > 0.1


def test_a_chunk_is_what_the_engine_answers(engine):
    """Dimension by dimension, as the embodiment has them."""
    with serving(engine, LingBotVA(engine.robot, prompt=None)) as (port, server), \
            connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
        first, second = Client(connection).episode()
        np.testing.assert_array_equal(second[:, 0].T, server.live.latest.served.answer.actions)
        np.testing.assert_array_equal(server.live.latest.request.done, first[:, 1].T)
        assert server.live.latest.request.block == 2 and server.live.latest.served.answer.gap > 0


def test_what_is_refused(engine):
    with serving(engine, LingBotVA(engine.robot, prompt=None)) as (port, _), \
            connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
        client, chunk = Client(connection), np.zeros((16, 1, 4), np.float32)
        assert "no prompt is known: send {'reset': True" in client.ask(obs=seen(0))
        assert "lacks 'prompt'" in client.ask(reset=True)
        assert "nothing has been predicted yet" in client.ask(obs=[seen(0)], compute_kv_cache=True, state=chunk)
        assert "an observation is a map of names to values, found list" in client.send([1])
        client.ask(reset=True, prompt="lift")
        client.ask(obs=seen(0))
        assert "missing: send it (compute_kv_cache)" in client.ask(obs=seen(0))
        assert "found 3 frames: send the 4" in client.ask(obs=[seen(0)] * 3, compute_kv_cache=True, state=chunk)
        assert "at most 4, found 5" in client.ask(obs=[seen(0)] * 5, compute_kv_cache=True, state=chunk)
        assert "[16, 1, 4] (or 2 frames of the first chunk) and finite, found float32 [16, 3, 4]" in client.ask(
            obs=[seen(0)] * 4, compute_kv_cache=True, state=np.zeros((16, 3, 4), np.float32))
        assert "lacks 'observation.images.cam_high'" in client.ask(obs={"image": seen(0)[CAMERAS[0]]})
        assert "'obs' is no map" in client.ask(obs=5)
        assert "uint8 [at most 480, at most 640, 3], found uint8 [48, 64, 4]" in client.ask(
            obs=seen(0) | {CAMERAS[0]: np.zeros((48, 64, 4), np.uint8)})
        assert "'more', which nobody reads" in client.ask(obs=seen(0), more=1)


def test_a_robot_with_a_state_is_served_otherwise(tmp_path):
    restored = restore(tiny_policy.write(tmp_path))
    with pytest.raises(ValueError, match="sends no state; embodiment 'pusht' .* has 2 state dimensions. .*openpi"):
        LingBotVA(choose_robot(restored, None, None))
