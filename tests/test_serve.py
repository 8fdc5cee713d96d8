"""The policy server, spoken to by the public client as it is: sessions, refusals, limits, drain."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import websockets
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from PIL import Image
from websockets.sync.client import connect

from benchmarks import serve_load
from launch import build
from launch.serving.engine import Engine, choose_robot
from launch.serving.protocols import DreamZero, OpenPi
from launch.serving.server import Limits, Server
from tests import tiny_policy


def make_engine(directory, embodiment: str, **options) -> Engine:
    restored = build.restore(tiny_policy.write(directory, embodiment))
    return Engine(restored, choose_robot(restored, None, None), **options)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = make_engine(tmp_path_factory.mktemp("pusht"), "pusht", slots=4, batch_sizes=(4,))
    engine.warm()
    return engine


@contextlib.contextmanager
def serving(engine, protocol=None, limits=None, **options):
    """(port, server) of a server in a thread."""
    protocol = protocol or OpenPi(engine.robot, (32, 32), "push the T")
    server, started, port = Server(engine, protocol, limits or Limits(), say=lambda _: None, **options), threading.Event(), []

    async def main():
        server.stop, server.loop = asyncio.Event(), asyncio.get_running_loop()
        await server.run("127.0.0.1", 0, server.stop, lambda p: (port.append(p), started.set()))

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    try:
        assert started.wait(30)
        yield port[0], server
    finally:
        server.loop.call_soon_threadsafe(server.stop.set)
        thread.join(120)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(engine):
    with serving(engine) as (port, server):
        yield port, server


def observation(seed: int = 0, frames: int | None = None, **more) -> dict:
    rng = np.random.default_rng(seed)
    shape = (32, 32, 3) if frames is None else (frames, 32, 32, 3)
    return {"observation/image": rng.integers(0, 255, shape).astype(np.uint8),
            "observation/state": rng.uniform(100, 400, 2).astype(np.float32), **more}


def client(port: int, **options) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", port, **options)


def get(url: str, **headers) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_public_client_needs_only_what_is_announced(server, engine):
    policy = client(server[0])
    announced = policy.get_server_metadata()["observation"]
    assert announced == {"observation/image": {"shape": [32, 32, 3], "dtype": "uint8"},
                         "observation/state": {"shape": [2], "dtype": "float32"}}
    reply = policy.infer({key: np.ones(each["shape"], each["dtype"]) for key, each in announced.items()})
    assert reply["actions"].shape == (4, 2) and reply["actions"].dtype == np.float32
    assert reply["interventions"].keys() == {"limit", "speed", "held"}
    assert set(reply["server_timing"]) == {"queue_ms", "infer_ms"}
    # Robot units: normalised actions would lie about 0, these about the training data's 100 to 400.
    assert reply["actions"].mean() > 50


def test_the_cache_goes_on_with_the_frames_that_were_seen(server, engine):
    """The second chunk depends on the first frame and on the frames since; a full window begins again."""
    history = lambda seed, later: [client(server[0]), observation(seed), observation(later, frames=4)]

    def second(seed, later):
        policy, first, then = history(seed, later)
        policy.infer(first | {"session_id": "same noise", "reset": True})
        actions = policy.infer(then | {"session_id": "same noise"})["actions"]
        with contextlib.closing(policy._ws):
            return actions

    plain = second(1, 2)
    np.testing.assert_allclose(second(1, 2), plain, rtol=1e-5)
    assert np.abs(second(3, 2) - plain).max() > 0.1  # another first frame
    policy, first, then = history(1, 2)
    policy.infer(first)
    policy.infer(then)
    assert policy.infer(observation(5, frames=4))["actions"].shape == (4, 2)  # third of two blocks: a new window
    policy.infer(observation(6))


BAD = [
    ({"observation/image": np.zeros((31, 32, 3), np.uint8)}, r"'observation/image' should be uint8 \[32, 32, 3\].*found "
                                                             r"uint8 \[31, 32, 3\]"),
    ({"observation/image": np.zeros((32, 32, 3), np.float32)}, r"found float32 \[32, 32, 3\]"),
    ({"observation/image": np.zeros((32, 32), np.uint8)}, r"found uint8 \[32, 32\]"),
    ({"observation/image": np.zeros((0, 32, 32, 3), np.uint8)}, r"found uint8 \[0, 32, 32, 3\]"),
    ({"observation/image": "a picture"}, "found 'a picture'"),
    ({"observation/wrist": np.zeros((32, 32, 3), np.uint8)}, "'observation/wrist', which nobody reads"),
    ({"observation/state": np.float32([1, np.nan])}, "agent_y is nan; a state must be finite"),
    ({"observation/state": np.float32([1, 2, 3])}, r"float32 \[2\] \(agent_x, agent_y\), found float32 \[3\]"),
    ({"observation/state": np.int64([1, 2])}, r"found int64 \[2\]"),
    ({"prompt": "push " * 17}, "has 17 tokens, model.text_length = 16"),
    ({"prompt": "x" * 3000}, "at most 2000 characters, found 3000"),
    ({"prompt": 5}, "'prompt' should be a text"),
    ({"session_id": "x" * 200}, "at most 128 characters"),
    ({"reset": "yes"}, "'reset' should be true or false"),
    ({"actions_in_flight": np.zeros((5, 2), np.float32)}, r"\[at most 4, 2\] and finite, found float32 \[5, 2\]"),
    ({"step": -1}, "'step' should be a whole number"),
]


def test_each_mistake_is_a_sentence_and_the_connection_lives(server):
    policy = client(server[0])
    good = policy.infer(observation())["actions"]
    for change, sentence in BAD:
        with pytest.raises(RuntimeError, match=sentence):
            policy.infer(observation() | change)
    with pytest.raises(RuntimeError, match="the observation lacks 'observation/state'"):
        policy.infer({"observation/image": observation()["observation/image"]})
    with pytest.raises(RuntimeError, match=r"found 3 frames: send 1, .* or the 4 of a block, every 1 control steps"):
        policy.infer(observation(frames=3))
    with pytest.raises(RuntimeError, match="an observation is a map of names to values, found list"):
        policy.infer([1, 2])
    for message, sentence in ((b"\xc1", "not msgpack"), ("hello", "should be binary")):
        policy._ws.send(message)
        assert sentence in policy._ws.recv()
    assert policy.infer(observation())["actions"].shape == good.shape


def test_order_of_messages(server):
    policy = client(server[0])
    with pytest.raises(RuntimeError, match="first message should be a reset or hold one frame, found 4 frames"):
        policy.infer(observation(frames=4))
    policy.infer(observation(step=100))
    with pytest.raises(RuntimeError, match="of step 96, older than the cache, which holds step 100"):
        policy.infer(observation(frames=4, step=96))
    with pytest.raises(RuntimeError, match="of step 108, the cache goes on at step 104"):
        policy.infer(observation(frames=4, step=108))
    policy.infer(observation(frames=4, step=104))
    policy.infer(observation(frames=4, step=0, reset=True))


def test_a_session_flood_evicts_the_oldest_and_says_so(server):
    flood, victim = client(server[0]), client(server[0])
    before = server[1].sessions.evicted
    victim.infer(observation(session_id="victim"))
    for i in range(8):
        flood.infer(observation(session_id=f"flood {i}"))
    assert len(server[1].sessions) == 4 and server[1].sessions.evicted > before
    with pytest.raises(RuntimeError, match="session 'victim' is new here, or was evicted"):
        victim.infer(observation(frames=4, session_id="victim"))
    with pytest.raises(RuntimeError, match="session 'flood 7' is in use by another connection"):
        victim.infer(observation(session_id="flood 7"))
    flood._ws.close()
    assert eventually(lambda: victim.infer(observation(frames=4, session_id="flood 7"))["actions"].shape == (4, 2))


def eventually(act, seconds: float = 60.0):
    """act() once it no longer raises RuntimeError (the server learns of a closed connection a moment later)."""
    end = time.monotonic() + seconds
    while True:
        try:
            return act()
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def test_pages(server):
    url = f"http://127.0.0.1:{server[0]}"
    assert get(f"{url}/healthz") == (200, "ready\n")
    client(server[0]).infer(observation())
    status, text = get(f"{url}/metrics")
    assert status == 200 and 'wamax_requests_total{outcome="answered"}' in text and "wamax_request_seconds_bucket" in text
    assert get(f"{url}/else")[0] == 404
    assert get(f"{url}/")[1].startswith("<!doctype html>")
    client(server[0]).infer(observation(7, session_id="shown", reset=True))
    live = json.loads(get(f"{url}/live.json")[1])
    latest = live["latest"]
    assert live["embodiment"] == "pusht" and latest["facts"]["session"] == "id:shown"
    assert latest["names"] == ["target_x", "target_y"] and np.shape(latest["actions"]) == (4, 2)
    seen = np.array(Image.open(io.BytesIO(base64.b64decode(latest["seen"].partition(",")[2]))))
    np.testing.assert_array_equal(seen, observation(7)["observation/image"])
    assert len(latest["imagined"]) == 4
    with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{server[0]}", origin="http://elsewhere.example")


def test_token(engine):
    with serving(engine, token="secret") as (port, _):
        with pytest.raises(websockets.exceptions.InvalidStatus, match="401"):
            client(port)
        with pytest.raises(websockets.exceptions.InvalidStatus, match="401"):
            client(port, api_key="wrong")
        assert client(port, api_key="secret").infer(observation())["actions"].shape == (4, 2)
        url = f"http://127.0.0.1:{port}"
        assert get(f"{url}/healthz")[0] == 200 and get(f"{url}/metrics")[0] == 401
        assert get(f"{url}/live.json")[0] == 401
        assert get(f"{url}/metrics", Authorization="Bearer secret")[0] == 200


def test_tls(engine, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(engine, tls=context) as (port, _):
        trust = ssl.create_default_context(cafile=cert)
        with connect(f"wss://127.0.0.1:{port}", ssl=trust, compression=None) as connection:
            assert msgpack_numpy.unpackb(connection.recv())["embodiment"] == "pusht"
        with pytest.raises((OSError, websockets.exceptions.WebSocketException, EOFError)):
            connect(f"ws://127.0.0.1:{port}")


def test_limits(engine):
    limits = Limits(connections=2, message_bytes=20_000, messages_per_second=0.01, burst=3, refusals=4)
    with serving(engine, limits=limits) as (port, _):
        first, second = client(port), client(port)
        with pytest.raises(websockets.exceptions.InvalidStatus, match="503"):
            client(port)
        with pytest.raises(websockets.exceptions.ConnectionClosedError, match="1009"):
            first.infer(observation(frames=20))  # 61 kB
        for _ in range(3):
            second.infer(observation())
        for _ in range(4):
            with pytest.raises(RuntimeError, match="too many messages: 0.01 a second are served"):
                second.infer(observation())
        with pytest.raises(websockets.exceptions.ConnectionClosedError, match="4 refused messages in a row"):
            second.infer(observation())


def test_a_full_queue_refuses_and_a_drain_answers_what_was_taken(engine, monkeypatch):
    """The model is held up: one request runs, one waits, the third is refused; then SIGTERM's work is done."""
    entered, release = threading.Event(), threading.Event()
    plain = engine.step

    def slow(requests):
        entered.set()
        assert release.wait(120)
        return plain(requests)

    monkeypatch.setattr(engine, "step", slow)
    with serving(engine, limits=Limits(queue=1)) as (port, server):
        policies, answers = [client(port) for _ in range(3)], {}
        ask = lambda i: answers.setdefault(i, policies[i].infer(observation(i))["actions"])
        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(2)]
        threads[0].start()
        assert entered.wait(30)
        threads[1].start()
        assert eventually(lambda: wait_for(lambda: 'wamax_queue 1.0' in server.telemetry.text()))
        with pytest.raises(RuntimeError, match="the server is busy: 1 requests wait already; try again"):
            policies[2].infer(observation(2))
        server.loop.call_soon_threadsafe(server.stop.set)
        assert wait_for(lambda: server.scheduler.draining)
        with pytest.raises(RuntimeError, match="the server is shutting down"):
            policies[2].infer(observation(2))
        with pytest.raises(OSError):
            client(port)
        release.set()
        for thread in threads:
            thread.join(120)
        assert {i: a.shape for i, a in answers.items()} == {0: (4, 2), 1: (4, 2)}
        with pytest.raises(websockets.exceptions.ConnectionClosed, match="1001.*shutting down"):
            policies[2]._ws.recv()


def wait_for(condition, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_actions_that_are_not_finite_are_never_sent(engine, monkeypatch):
    plain = engine.robot.commands
    with serving(engine) as (port, _):
        policy = client(port)
        policy.infer(observation())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(engine.robot), "commands", lambda *_: np.full((4, 2), np.nan, np.float32))
            with pytest.raises(RuntimeError, match="actions that are not finite, in state"):
                policy.infer(observation(frames=4))
        assert engine.robot.commands == plain and policy.infer(observation(frames=4))["actions"].shape == (4, 2)


def test_a_failing_device_ends_every_session_and_not_the_server(engine, monkeypatch):
    """A step fails while another session waits: its window is gone too, and it must not go on without."""
    entered, release, plain = threading.Event(), threading.Event(), engine.step

    def fails(requests):
        entered.set()
        assert release.wait(120)
        monkeypatch.setattr(engine, "step", plain)
        raise RuntimeError("out of memory")

    with serving(engine) as (port, server):
        policies, errors = [client(port) for _ in range(2)], {}
        for policy in policies:
            policy.infer(observation())

        def ask(i):
            with pytest.raises(RuntimeError) as caught:
                policies[i].infer(observation(frames=4))
            errors[i] = str(caught.value)

        monkeypatch.setattr(engine, "step", fails)
        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(2)]
        threads[0].start()
        assert entered.wait(30)
        threads[1].start()
        assert wait_for(lambda: "wamax_queue 1.0" in server.telemetry.text())
        release.set()
        for thread in threads:
            thread.join(120)
        assert all("all sessions begin again: out of memory" in errors[i] for i in range(2))
        with pytest.raises(RuntimeError, match="new here, or was evicted"):
            policies[1].infer(observation(frames=4))
        assert policies[1].infer(observation())["actions"].shape == (4, 2)


def test_a_client_that_does_not_read_blocks_nobody(engine):
    """Its answers pile up in the socket until the server drops it; others are served meanwhile."""
    limits = Limits(send_seconds=1.0, messages_per_second=1e6, burst=10**6, refusals=10**6, message_bytes=10**6)
    with serving(engine, limits=limits) as (port, server):
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", port))
        deaf = connect(f"ws://127.0.0.1:{port}", sock=line, compression=None, ping_interval=None, max_queue=1)
        stop = threading.Event()

        def shout():
            with contextlib.suppress(Exception):
                while not stop.is_set():
                    deaf.send(b"\x80")  # each is answered by a long sentence that nobody reads

        thread = threading.Thread(target=shout, daemon=True)
        thread.start()
        policy = client(port)
        assert wait_for(lambda: policy.infer(observation()) and server.telemetry.slow._value.get() == 1, seconds=120)
        stop.set()
        deaf.socket.close()
        thread.join(10)


@pytest.fixture(scope="module")
def droid(tmp_path_factory):
    return make_engine(tmp_path_factory.mktemp("droid"), tiny_policy.DROID, slots=2, batch_sizes=(1,))


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


def test_dreamzero_protocol_refuses_another_embodiment(engine):
    with pytest.raises(ValueError, match="speaks of 3 views, 8 state and 8 action .* 'pusht' of the checkpoint has 1, 2 and 2"):
        DreamZero(engine.robot)


def test_load_on_the_command(tmp_path):
    """From a checkpoint on disk to SIGTERM, a few seconds of the load test: benchmarks/serve_load.py."""
    outcome = serve_load.run(tiny_policy.write(tmp_path), clients=6, seconds=6.0, batch_sizes="4")
    assert outcome["passed"], outcome
    assert outcome["requests"] > 20 and sum(outcome["hostile_acts"].values()) > 5 and outcome["mixups"] == 0
