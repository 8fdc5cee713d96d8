"""Connections: who may come in, how much they may send, and what they hear (extra: serve).

Each connection has its own coroutine and at most one request on its way; it waits for its own client alone. A client
hears a sentence (a text message) for everything that it gets wrong, and the connection stays open, unless it does not
read, sends too much, or goes on against the limits.
"""

import asyncio
import contextlib
import dataclasses
import math
import socket
import ssl
import time
from typing import cast

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import MultipleValuesError
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from launch.serving import wire
from launch.serving.access import Access, Denied
from launch.serving.engine import Engine, ModelError
from launch.serving.intake import Budget, Connection, Intake, quiet_logger
from launch.serving.live import PAGE, Live
from launch.serving.messages import BadRequest, Feedback, Protocol, Reset
from launch.serving.scheduler import Refused, Scheduler
from launch.serving.sessions import Sessions
from launch.serving.telemetry import CONTENT_TYPE, Telemetry


class TooMany(RuntimeError):
    """A client sends faster than it may."""


class Sentence(str):
    """A refusal, as text for the client."""


PAGES = ("/healthz", "/metrics", "/live.json")  # never a WebSocket
OUTCOMES = {wire.WireError: "unreadable", BadRequest: "bad_request", Refused: "refused", TooMany: "rate_limited",
            ModelError: "failed"}  # what a message may end in, beside an answer


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client may ask of the server."""

    connections: int = 128
    sessions_per_connection: int = 8
    queue: int = 64  # requests that wait for the model
    message_bytes: int | None = None  # None: what the protocol's largest message takes
    held_bytes: int = 256 * 2**20  # bytes of messages that come or wait, over all connections; four always fit
    messages_per_second: float = 50.0  # messages of a connection, over time
    burst: int = 100  # messages at once
    pages_per_second: float = 20.0  # live.json and metrics, over all who look
    refusals: int = 200  # in a row, after which a connection is closed
    send_seconds: float = 10.0  # a client that does not read for so long is dropped
    drain_seconds: float = 30.0  # to answer what was taken, after SIGTERM


class Server:
    """A policy behind a port."""

    def __init__(self, engine: Engine, protocol: Protocol, limits: Limits, *, token: str | None = None,
                 names: tuple[str, ...] = (), tls: ssl.SSLContext | None = None, say=print):
        """names: see Access."""
        self.engine, self.protocol, self.limits, self.say = engine, protocol, limits, say
        self._access, self._tls = Access(token, names), tls
        self._pages = Budget(limits.pages_per_second, int(limits.pages_per_second))
        self.telemetry = Telemetry()
        self.sessions = Sessions(engine, per_connection=limits.sessions_per_connection, remembers=protocol.remembers)
        self.live, self._open = Live(engine), 0
        self.telemetry.connections.set_function(lambda: self._open)
        self.telemetry.sessions.set_function(lambda: len(self.sessions))
        self.telemetry.evicted.set_function(lambda: self.sessions.evicted)

    async def run(self, socket: socket.socket, stop: asyncio.Event, ready=lambda port: None) -> None:
        """Serves on a bound socket until `stop` is set, answers what it has taken, and returns. `ready` hears the
        port."""
        size = self.limits.message_bytes or self.protocol.message_bytes
        intake = Intake(bytes_held=max(self.limits.held_bytes, 4 * size), connections=self.limits.connections,
                        frames_per_second=4 * self.limits.messages_per_second, frames_at_once=4 * self.limits.burst,
                        cut=lambda reason: self.telemetry.cut.labels(reason).inc())
        self.scheduler = Scheduler(self.engine, self.limits.queue, self.telemetry, self.sessions.clear)
        worker = asyncio.create_task(self.scheduler.run())
        async with serve(self._connection, create_connection=cast(type[Connection], intake.connection), sock=socket,
                         process_request=self._http, ssl=self._tls, compression=None, logger=quiet_logger(),
                         max_size=size, max_queue=2, ping_interval=20, ping_timeout=20, close_timeout=5) as server:
            ready(next(iter(server.sockets)).getsockname()[1])
            await stop.wait()
            self.say("stopping: answering what was asked")
            server.server.close()  # nobody new; Server.close works once, and takes the connections along
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.limits.drain_seconds):
                    await self.scheduler.drain()
                    await asyncio.sleep(0.1)  # the answers leave
            server.close(reason="the server is shutting down")
        worker.cancel()

    async def _http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Plain pages, and who may open a WebSocket (None: may)."""
        try:
            websocket = request.headers.get("Upgrade", "").lower() == "websocket"
            if denied := self._denied(request, websocket):
                self.telemetry.turned_away.labels(denied.reason).inc()
                return self._page(connection, denied.status, denied.sentence + "\n")
            return None if websocket and request.path not in PAGES else await self._plain(connection, request.path)
        except MultipleValuesError as error:
            return self._page(connection, 400, f"the header {error} comes more than once\n")

    def _denied(self, request: HttpRequest, websocket: bool) -> Denied | None:
        path, headers = request.path, request.headers
        if path == "/healthz":
            return None
        if denied := self._access.denies_host(headers):
            return denied
        if (path != "/" or websocket) and (denied := self._access.denies_token(headers)):
            return denied
        if path in PAGES:
            most = f"{self.limits.pages_per_second:g} pages a second are served"
            return None if self._pages.take() else Denied(429, "pages", most)
        if websocket and "Origin" in headers:  # browsers send it; a page elsewhere must not drive a robot on this host
            return Denied(403, "origin", "browsers may not connect")
        if websocket and self._open >= self.limits.connections:
            return Denied(503, "full", f"the server is full: {self._open} connections are open")
        return None

    async def _plain(self, connection: ServerConnection, path: str) -> Response:
        if path == "/healthz":
            return self._page(connection, *((503, "draining\n") if self.scheduler.draining else (200, "ready\n")))
        if path == "/":
            return self._page(connection, 200, PAGE.read_text(), "text/html; charset=utf-8")
        if path == "/metrics":
            return self._page(connection, 200, self.telemetry.text(), CONTENT_TYPE)
        if path == "/live.json":
            text = await self.live.json(sessions=len(self.sessions), connections=self._open)
            return self._page(connection, 200, text, "application/json")
        return self._page(connection, 404, "here are /, /healthz, /metrics, /live.json and a WebSocket\n")

    def _page(self, connection: ServerConnection, status: int, text: str, kind: str = "text/plain; charset=utf-8"):
        response = connection.respond(status, text)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = kind
        return response

    async def _connection(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Connection)
        self._open += 1
        budget, refused = Budget(self.limits.messages_per_second, self.limits.burst), 0
        try:
            await self._send(connection, wire.pack(self.protocol.metadata()))
            async for data in connection:
                reply = await self._reply(connection, data, budget)
                refused = refused + 1 if isinstance(reply, Sentence) else 0
                await self._send(connection, reply)
                connection.answered()
                if refused >= self.limits.refusals:
                    await connection.close(1008, f"{refused} refused messages in a row")
        except ConnectionClosed:
            pass  # however it came: nobody is left to tell
        finally:
            self._open -= 1
            self.sessions.leave(connection)

    async def _reply(self, connection: ServerConnection, data: bytes | str, budget: "Budget") -> "bytes | str":
        """The answer to one message, or a `Sentence` about what is wrong with it."""
        try:
            if not budget.take():
                raise TooMany(f"too many messages: {self.limits.messages_per_second:g} a second are served")
            if isinstance(data, str):
                raise wire.WireError("a message should be binary (msgpack), found text")
            message = self.protocol.parse(wire.unpack(data))
            if isinstance(message, Reset):
                self.sessions.end(message.session, connection, message.prompt)
                outcome, reply = "reset", _packed(self.protocol.done())
            elif isinstance(message, Feedback):
                self.sessions.add_feedback(message, connection)
                outcome, reply = "seen", _packed(self.protocol.done())
            else:
                outcome, reply = "answered", await self._infer(connection, message)
        except tuple(OUTCOMES) as error:
            outcome, reply = next(name for kind, name in OUTCOMES.items() if isinstance(error, kind)), Sentence(error)
        self.telemetry.requests.labels(outcome).inc()
        return reply

    async def _infer(self, connection: ServerConnection, observation) -> bytes:
        began = time.monotonic()
        session, request = self.sessions.plan(observation, connection)
        try:
            served = await self.scheduler.submit(request)
        finally:
            session.busy = False
        self.sessions.done(session, observation, request, served.answer)
        self.live.note(session.name, request, served)
        for kind, count in served.answer.interventions.items():
            self.telemetry.interventions.labels(kind).inc(count)
        if served.answer.gap is not None and math.isfinite(served.answer.gap):
            self.telemetry.gap.observe(served.answer.gap)
        self.telemetry.seconds.observe(time.monotonic() - began)
        timing = {"queue_ms": served.queue_ms, "infer_ms": served.infer_ms}
        return wire.pack(self.protocol.answer(served.answer, request, timing))

    async def _send(self, connection: ServerConnection, reply: bytes | str) -> None:
        """Drops a client that does not read."""
        try:
            async with asyncio.timeout(self.limits.send_seconds):
                await connection.send(reply)
        except TimeoutError:
            self.telemetry.slow.inc()
            connection.transport.abort()
            raise ConnectionClosed(None, None) from None


def _packed(reply: str | dict) -> bytes | str:
    return reply if isinstance(reply, str) else wire.pack(reply)
