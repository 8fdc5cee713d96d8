"""The policy server under strangers, floods, failures and shutdown: nobody else notices."""

import contextlib
import json
import socket
import ssl
import subprocess
import threading

import numpy as np
import pytest
import websockets
from openpi_client import msgpack_numpy
from websockets.sync.client import connect

from benchmarks import serve_load
from launch.serving.server import Limits
from tests import tiny_policy
from tests.serving import client, eventually, get, observation, serving, wait_for


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

        def ask(i):
            return answers.setdefault(i, policies[i].infer(observation(i))["actions"])

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
        deaf = connect(f"ws://127.0.0.1:{port}", sock=line, compression=None, ping_interval=None, max_queue=1,
                       open_timeout=120)
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


def test_load_on_the_command(tmp_path):
    """From a checkpoint on disk to SIGTERM, some seconds of the load test: benchmarks/serve_load.py."""
    outcome = serve_load.run(tiny_policy.write(tmp_path), clients=6, seconds=15.0, batch_sizes="4")
    assert outcome["passed"], json.dumps(outcome)
    assert outcome["requests"] > 20 and sum(outcome["hostile_acts"].values()) > 5 and outcome["mixups"] == 0
