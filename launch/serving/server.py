"""Connections: who may come in, how much they may send, and what they hear (extra: serve).

Each connection has its own coroutine and at most one request on its way; it waits for its own client alone. A client
hears a sentence (a text message) for everything that it gets wrong, and the connection stays open, unless it does not
read, sends too much, or goes on against the limits.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import ssl
import time

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from launch.serving import wire
from launch.serving.engine import Engine, ModelError
from launch.serving.live import PAGE, Live
from launch.serving.protocols import BadRequest, Reset
from launch.serving.scheduler import Refused, Scheduler
from launch.serving.sessions import Sessions
from launch.serving.telemetry import CONTENT_TYPE, Telemetry


class TooMany(RuntimeError):
    """A client sends faster than it may."""


class Sentence(str):
    """A refusal, as text for the client."""


OUTCOMES = {wire.WireError: "unreadable", BadRequest: "bad_request", Refused: "refused", TooMany: "rate_limited",
            ModelError: "failed"}  # what a message may end in, beside an answer


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client may ask of the server."""

    connections: int = 128
    sessions_per_connection: int = 8
    queue: int = 64  # requests that wait for the model
    message_bytes: int = 16 * 2**20
    messages_per_second: float = 50.0  # of a connection, over time
    burst: int = 100  # messages at once
    refusals: int = 200  # in a row, after which a connection is closed
    send_seconds: float = 10.0  # a client that does not read for so long is dropped
    drain_seconds: float = 30.0  # to answer what was taken, after SIGTERM


class Server:
    """A policy behind a port."""

    def __init__(self, engine: Engine, protocol, limits: Limits, *, token: str | None = None,
                 tls: ssl.SSLContext | None = None, say=print):
        self.engine, self.protocol, self.limits, self.say = engine, protocol, limits, say
        self._token, self._tls = token, tls
        self.telemetry = Telemetry()
        self.sessions = Sessions(engine, per_connection=limits.sessions_per_connection, remembers=protocol.remembers)
        self.live, self._open = Live(engine), 0
        self.telemetry.connections.set_function(lambda: self._open)
        self.telemetry.sessions.set_function(lambda: len(self.sessions))
        self.telemetry.evicted.set_function(lambda: self.sessions.evicted)

    async def run(self, host: str, port: int, stop: asyncio.Event, ready=lambda port: None) -> None:
        """Serves until `stop` is set, answers what it has taken, and returns. `ready` hears the port."""
        self.scheduler = Scheduler(self.engine, self.limits.queue, self.telemetry, self.sessions.clear)
        worker = asyncio.create_task(self.scheduler.run())
        async with serve(self._connection, host, port, process_request=self._http, ssl=self._tls, compression=None,
                         max_size=self.limits.message_bytes, max_queue=2, ping_interval=20, ping_timeout=20,
                         close_timeout=5) as server:
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
        if request.path == "/healthz":
            return self._page(connection, 503, "draining\n") if self.scheduler.draining else \
                self._page(connection, 200, "ready\n")
        websocket = request.headers.get("Upgrade", "").lower() == "websocket"
        if request.path == "/" and not websocket:
            return self._page(connection, 200, PAGE.read_text(), "text/html; charset=utf-8")
        if not self._authorised(request.headers):
            self.telemetry.turned_away.labels("token").inc()
            return self._page(connection, 401, "a bearer token is needed: Authorization: Bearer TOKEN\n")
        if request.path == "/metrics":
            return self._page(connection, 200, self.telemetry.text(), CONTENT_TYPE)
        if request.path == "/live.json":
            return self._page(connection, 200, await self._live_json(), "application/json")
        if not websocket:
            return self._page(connection, 404, "here are /, /healthz, /metrics, /live.json and a WebSocket\n")
        if "Origin" in request.headers:  # browsers send it; a page elsewhere must not drive a robot on this host
            self.telemetry.turned_away.labels("origin").inc()
            return self._page(connection, 403, "browsers may not connect\n")
        if self._open >= self.limits.connections:
            self.telemetry.turned_away.labels("full").inc()
            return self._page(connection, 503, f"the server is full: {self._open} connections are open\n")
        return None

    async def _live_json(self) -> str:
        shown, imagined = self.live.latest, None
        if shown is not None and shown.served.answer.latents is not None:
            imagined = await self.scheduler.on_engine(self.engine.decode, shown.served.answer.latents)
        return self.live.json(shown, imagined, sessions=len(self.sessions), connections=self._open)

    def _page(self, connection: ServerConnection, status: int, text: str, kind: str = "text/plain; charset=utf-8"):
        response = connection.respond(status, text)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = kind
        return response

    def _authorised(self, headers: Headers) -> bool:
        if self._token is None:
            return True
        given = headers.get("Authorization", "")
        expected = (f"Bearer {self._token}", f"Api-Key {self._token}")  # openpi-client sends the second
        return any(hmac.compare_digest(given.encode(), one.encode()) for one in expected)

    async def _connection(self, connection: ServerConnection) -> None:
        self._open += 1
        budget, refused = Budget(self.limits.messages_per_second, self.limits.burst), 0
        try:
            await self._send(connection, wire.pack(self.protocol.metadata()))
            async for data in connection:
                reply = await self._reply(connection, data, budget)
                refused = refused + 1 if isinstance(reply, Sentence) else 0
                await self._send(connection, reply)
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
                self.sessions.end(message.session, connection)
                outcome, reply = "reset", "reset successful"
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
        self.sessions.done(session, observation, request.block)
        self.live.note(session.name, request, served)
        for kind, count in served.answer.interventions.items():
            self.telemetry.interventions.labels(kind).inc(count)
        if served.answer.gap is not None:
            self.telemetry.gap.observe(served.answer.gap)
        self.telemetry.seconds.observe(time.monotonic() - began)
        timing = {"queue_ms": served.queue_ms, "infer_ms": served.infer_ms}
        return wire.pack(self.protocol.answer(served.answer, timing))

    async def _send(self, connection: ServerConnection, reply: bytes | str) -> None:
        """Drops a client that does not read."""
        try:
            async with asyncio.timeout(self.limits.send_seconds):
                await connection.send(reply)
        except TimeoutError:
            self.telemetry.slow.inc()
            connection.transport.abort()
            raise ConnectionClosed(None, None) from None


class Budget:
    """A token bucket: `burst` at once, `rate` a second over time."""

    def __init__(self, rate: float, burst: int):
        self.rate, self.burst = rate, burst
        self._left, self._at = float(burst), time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed now."""
        now = time.monotonic()
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
