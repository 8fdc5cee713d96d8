"""What strangers may send to the policy server without anybody else noticing (benchmarks/hostile_client.py does it all
at once)."""

import asyncio
import contextlib
import json
import logging
import socket
import struct
import threading
import time
import types

import pytest
import websockets
from websockets.sync.client import connect

from launch import serve
from launch.serving import live
from launch.serving.access import Access, bind
from launch.serving.protocols import DreamZero, OpenPi
from launch.serving.server import Limits
from tests.serving import client, get, observation, serving, wait_for
from world_model.batch import Layout

HELLO = ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n")


def cut(server, reason: str) -> float:
    return server.telemetry.cut.labels(reason)._value.get()


def speak(port: int, text: bytes, listen: float = 5.0) -> bytes:
    """The first of an answer to raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=listen) as line:
        line.sendall(text)
        with contextlib.suppress(TimeoutError):
            return line.recv(200)
    return b""


def frame(opcode: int, payload: bytes, length: int | None = None) -> bytes:
    """A client's WebSocket frame, masked with zeros; length: as announced."""
    return bytes([0x80 | opcode, 0xFF]) + struct.pack(">Q", len(payload) if length is None else length) + bytes(4) + payload


@contextlib.contextmanager
def raw(port: int):
    """A socket on which a WebSocket has been opened."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(HELLO.encode() + b"\r\n")
        assert line.recv(12) == b"HTTP/1.1 101"
        yield line


@pytest.mark.parametrize("protocol, needed", [
    (lambda robot: OpenPi(robot, (180, 320)), 8 * 3 * 180 * 320 * 3), (DreamZero, 8 * 3 * 180 * 320 * 3)])
def test_the_largest_message_follows_from_the_protocol(protocol, needed):
    robot = types.SimpleNamespace(horizon=24, layout=Layout(17, 360, 640, 2, 24, 1), embodiment=types.SimpleNamespace(
        name="droid", views=("a", "b", "c"), state=(0,) * 8, action=(0,) * 8))
    assert 4 * needed < protocol(robot).message_bytes < 4.2 * needed


def test_a_message_of_sixteen_million_arrays_is_refused_at_its_length(engine):
    with serving(engine) as (port, _):
        policy = client(port)
        assert policy.infer(observation(frames=None))["actions"].shape == (4, 2)
        with connect(f"ws://127.0.0.1:{port}", compression=None) as hostile:
            hostile.recv()
            with pytest.raises(websockets.exceptions.ConnectionClosed, match="1009"):
                hostile.send(b"\xdd" + (2**24).to_bytes(4, "big") + b"\x90" * 2**24)
                hostile.recv()
    with serving(engine, limits=Limits(message_bytes=2**25)) as (port, _), \
            connect(f"ws://127.0.0.1:{port}", compression=None) as hostile:  # as --message_mb=32
        hostile.recv()
        hostile.send(b"\xdd" + (2**24).to_bytes(4, "big") + b"\x90" * 2**24)
        assert "16777216 exceeds max_array_len(256)" in hostile.recv()


def test_unfinished_messages_are_bounded_over_all_connections(engine):
    """Four of a megabyte fit; of those that never end the oldest are cut, and a client is served meanwhile."""
    limits = Limits(message_bytes=2**20, held_bytes=0)
    with serving(engine, limits=limits) as (port, server), contextlib.ExitStack() as lines:
        for count in range(12):
            line = lines.enter_context(raw(port))
            line.sendall(frame(2, bytes(900_000), length=2**20))
            assert wait_for(lambda line=line, count=count: cut(server, "bytes") >= count - 3)
        assert cut(server, "bytes") == 8
        assert client(port).infer(observation())["actions"].shape == (4, 2)


@pytest.mark.parametrize("opcode, payload", [(9, b""), (9, bytes(100)), (10, b""), (2, b"")])
def test_a_flood_of_frames_is_cut(engine, opcode, payload):
    """Pings are answered by websockets itself, empty messages wait in its queue."""
    with serving(engine, limits=Limits(refusals=10**9)) as (port, server):
        policy = client(port)
        with raw(port) as line:
            with contextlib.suppress(OSError):
                for _ in range(50):
                    line.sendall(frame(opcode, payload) * 1000)
            assert wait_for(lambda: cut(server, "flood") == 1)
        assert policy.infer(observation())["actions"].shape == (4, 2)


def test_many_pings_are_answered_in_few_writes(engine, monkeypatch):
    """asyncio logs every write to a connection that is lost: it was one for each ping."""
    transport, sizes = asyncio.selector_events._SelectorSocketTransport, []
    plain = transport.write
    monkeypatch.setattr(transport, "write", lambda self, data: sizes.append(len(data)) or plain(self, data))
    with serving(engine) as (port, _), raw(port) as line:
        line.sendall(frame(9, b"") * 300)
        assert wait_for(lambda: sum(sizes) > 600)
    assert len(sizes) < 20


def test_half_handshakes_are_quiet_and_bounded(engine, caplog):
    """Broken, pipelined and abandoned ones; a handful of lines tells of them, and the server goes on."""
    two = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    with serving(engine) as (port, server), caplog.at_level(logging.DEBUG, "websockets"), contextlib.ExitStack() as lines:
        for text in (two, HELLO.encode(), b"\x00\x80\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello") * 10:
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(text)
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert client(port).infer(observation())["actions"].shape == (4, 2)
        for _ in range(Limits.connections + 80):
            lines.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert wait_for(lambda: cut(server, "full") > 0)
    assert sum(len(record.getMessage() + (record.exc_text or "")) for record in caplog.records) < 10_000


@pytest.mark.parametrize("name", ["Upgrade", "Authorization", "Host", "Origin", "Sec-WebSocket-Key"])
def test_a_repeated_header_is_a_bad_request(engine, name):
    twice = "".join(f"{name}: {value}\r\n" for value in ("websocket", "b"))
    hello = "".join(line + "\r\n" for line in HELLO.split("\r\n")[:-1] if not line.startswith(f"{name}:"))
    with serving(engine, token="secret" if name == "Authorization" else None) as (port, _):
        answer = speak(port, (hello + twice + "\r\n").encode())
        assert answer.split()[1] in (b"400", b"403") and (b"403" not in answer.split()[1] or name == "Origin")


@pytest.mark.parametrize("host, ours", [
    ("127.0.0.1", True), ("127.0.0.1:8000", True), ("[::1]:8000", True), ("::1", True), ("localhost:8000", True),
    ("LOCALHOST", True), ("robot.lab:8000", True), ("10.0.0.7", True), ("evil.example", False),
    ("evil.example:8000", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example:80", False), ("", False)])
def test_without_a_token_a_page_elsewhere_cannot_read_along(host, ours):
    """Its own name may be made to point here, an address may not."""
    assert (Access(None, ("robot.lab",)).denies_host({"Host": host}) is None) == ours
    assert Access("secret", ()).denies_host({"Host": host}) is None


def test_a_foreign_name_reads_nothing(engine):
    with serving(engine) as (port, _):
        for path in ("/", "/live.json", "/metrics"):
            assert get(f"http://127.0.0.1:{port}{path}", Host=f"evil.example:{port}")[0] == 403
        assert b"403" in speak(port, HELLO.replace("127.0.0.1", "evil.example").encode() + b"\r\n")
        assert get(f"http://127.0.0.1:{port}/healthz", Host="evil.example")[0] == 200  # of a cluster's probe
        assert get(f"http://localhost:{port}/live.json")[0] == 200


def test_many_readers_of_the_live_page_cost_one_rendering(engine, monkeypatch):
    """Not on the engine's thread; past a rate they are asked to come back."""
    threads, plain = [], engine.decode
    monkeypatch.setattr(engine, "decode", lambda latents: threads.append(threading.current_thread().name) or plain(latents))
    with serving(engine, limits=Limits(pages_per_second=10)) as (port, _):
        client(port).infer(observation())
        began = time.monotonic()
        found = [get(f"http://127.0.0.1:{port}/live.json") for _ in range(30)]
        took = time.monotonic() - began
    assert {status for status, _ in found} == {200, 429} and len(threads) <= 1 + took / live.SECONDS
    assert all(name.startswith("live") for name in threads)
    assert len(json.loads(found[0][1])["latest"]["imagined"]) == 4


def test_a_gap_that_is_no_number_leaves_the_page_readable(engine):
    page = live.Live(engine)
    answer = types.SimpleNamespace(gap=float("nan"))
    page.note("a", None, types.SimpleNamespace(answer=answer))
    assert list(page._gaps) == []


def test_a_key_alone_would_serve_in_the_clear(tmp_path):
    with pytest.raises(ValueError, match="--tls_key=.* without --tls_cert would serve in the clear"):
        serve.tls_context(None, str(tmp_path / "key.pem"))


def test_a_taken_port_is_found_before_anything_is_loaded(engine):
    with serving(engine) as (port, _), pytest.raises(OSError, match=f"--host=127.0.0.1 --port={port}: Address already"):
        bind("127.0.0.1", port)
    args = types.SimpleNamespace(token_file=None, tls_cert=None, tls_key=None, host="127.0.0.1", port=0, export=None,
                                 checkpoint="/nowhere", step=None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        args.port = taken.getsockname()[1]
        with pytest.raises(OSError, match="already in use"):
            serve.serve(args)
    held = bind("127.0.0.1", 0)
    with contextlib.closing(held), pytest.raises(ConnectionRefusedError):  # clients that wait for a server go on waiting
        socket.create_connection(held.getsockname())
