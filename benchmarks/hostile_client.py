"""Client that does one bad thing after another to the policy server, for benchmarks/serve_load.py."""

import contextlib
import socket
import threading
import time

import msgpack
import numpy as np
from openpi_client import msgpack_numpy
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

MANY = 2**24  # bytes of a message that no server should read
FITS = 50_000  # and of one that the smallest model's takes
HELLO = (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
         b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n")


class Hostile:
    """Client that chooses at random among bad things to do; `done` counts them."""

    def __init__(self, port: int, number: int, example: dict):
        self.port, self.example, self.rng = port, example, np.random.default_rng(1000 + number)
        self.done = {}

    @property
    def acts(self) -> tuple:
        """All that it knows."""
        return (self.malformed, self.oversized, self.truncated, self.out_of_order, self.hang_up, self.flood,
                self.garbage, self.deaf, self.containers, self.unfinished, self.pings, self.half_handshakes,
                self.read_along)

    def rehearse(self) -> None:
        """Does everything once: what the server needs for it, it has from then on."""
        for act in self.acts:
            self._do(act)

    def run(self, stop: threading.Event) -> None:
        """Acts until `stop`."""
        while not stop.is_set():
            self._do(self.acts[self.rng.integers(len(self.acts))])
            time.sleep(0.02)

    def _do(self, act) -> None:
        # However the server gets rid of it is right; the other clients show what it must not do.
        with contextlib.suppress(WebSocketException, OSError, TimeoutError):
            act()
        self.done[act.__name__] = self.done.get(act.__name__, 0) + 1

    @contextlib.contextmanager
    def _connect(self):
        with connect(f"ws://127.0.0.1:{self.port}", compression=None, max_size=None, open_timeout=5,
                     close_timeout=0.2) as connection:
            connection.recv(timeout=5)
            yield connection

    def malformed(self) -> None:
        """Sends damaged messages, an array of objects, and text."""
        good = np.frombuffer(msgpack_numpy.packb(self.example), np.uint8).copy()
        bad_array = {b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "|O", b"shape": [1]}
        with self._connect() as connection:
            for _ in range(5):
                good[self.rng.integers(0, 200, 5)] = self.rng.integers(0, 256, 5)
                connection.send(good.tobytes())
                connection.recv(timeout=10)
            connection.send(msgpack.packb({"observation/image": bad_array}))
            connection.recv(timeout=10)
            connection.send("text")
            connection.recv(timeout=10)

    def oversized(self) -> None:
        """Sends more than the server accepts."""
        with self._connect() as connection:
            connection.send(bytes(MANY))
            connection.recv(timeout=30)

    def truncated(self) -> None:
        """Sends half a WebSocket frame and cuts the line."""
        with self._connect() as connection:
            connection.socket.sendall(b"\x82\xfe\x40\x00\x00\x00\x00\x00" + bytes(500))
            connection.socket.shutdown(socket.SHUT_RDWR)

    def out_of_order(self) -> None:
        """Sends a block without a beginning, then an observation from the past."""
        with self._connect() as connection:
            images = {key: np.repeat(value[None] if value.ndim == 3 else value, 8, axis=0)
                      for key, value in self.example.items() if value.ndim >= 3}
            for request in (self.example | images, self.example | {"step": 10}, self.example | images | {"step": 3}):
                connection.send(msgpack_numpy.packb(request))
                connection.recv(timeout=10)

    def hang_up(self) -> None:
        """Asks and hangs up before the answer."""
        with self._connect() as connection:
            connection.send(msgpack_numpy.packb(self.example))
            connection.socket.shutdown(socket.SHUT_RDWR)

    def flood(self) -> None:
        """Opens session after session; the server may say that it is full."""
        with self._connect() as connection:
            for i in range(20):
                name = {"session_id": f"flood {self.rng.integers(1e9)} {i}"}
                connection.send(msgpack_numpy.packb(self.example | name))
                connection.recv(timeout=10)

    def garbage(self) -> None:
        """Sends what is no WebSocket at all."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as line:
            line.sendall(self.rng.integers(0, 256, 400).astype(np.uint8).tobytes())

    def deaf(self) -> None:
        """Sends and never reads."""
        with self._raw() as line:
            text = b"x" * 100
            for _ in range(300):
                line.sendall(b"\x81" + bytes([0x80 | len(text)]) + b"\0\0\0\0" + text)
            time.sleep(0.5)

    def containers(self) -> None:
        """Sends nothing but lists, side by side and in each other, and sixteen million that are too long to be read."""
        messages = (b"\xdd" + FITS.to_bytes(4, "big") + b"\x90" * FITS, b"\x91" * FITS, b"\xdc\x01\x00" * (FITS // 3),
                    b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY)
        with self._connect() as connection:
            for message in messages:
                connection.send(message)
                connection.recv(timeout=30)

    def unfinished(self) -> None:
        """Leaves forty messages without their ends."""
        with contextlib.ExitStack() as lines:
            for _ in range(40):
                line = lines.enter_context(self._raw())
                line.sendall(b"\x82\xff" + FITS.to_bytes(8, "big") + bytes(4) + bytes(FITS - 1))
            time.sleep(0.5)

    def pings(self) -> None:
        """Sends ten thousand pings, and empty messages."""
        with self._raw() as line:
            line.sendall((b"\x89\x80" + bytes(4)) * 10_000 + (b"\x82\x80" + bytes(4)) * 10_000)
            time.sleep(0.2)

    def half_handshakes(self) -> None:
        """Begins handshakes and leaves, sends two at once, and headers twice."""
        for text in (HELLO, HELLO + b"\r\n" + HELLO, HELLO + b"Upgrade: websocket\r\n\r\n",
                     HELLO + b"Authorization: a\r\nAuthorization: b\r\n\r\n") * 5:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as line:
                line.sendall(text)

    def read_along(self) -> None:
        """Reads the live page as fast as it comes, as a page elsewhere too."""
        for host in ("127.0.0.1", "elsewhere.example") * 10:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as line:
                line.sendall(f"GET /live.json HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                while line.recv(2**16):
                    pass

    @contextlib.contextmanager
    def _raw(self):
        """A socket on which a WebSocket is open, as far as this client cares."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as line:
            line.sendall(HELLO + b"\r\n")
            yield line
