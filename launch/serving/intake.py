"""What strangers may send before anybody reads it: bytes held for all connections, frames of each, lines in the log
(extra: serve).

websockets holds what a client has sent of a message until it is whole, and answers pings by itself. `Connection` counts
both: one that sends more frames than it may is cut, and where all connections together hold too much, the one whose
message has been unfinished the longest is.
"""

import collections
import logging
import time
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection
from websockets.frames import CTRL_OPCODES, Frame
from websockets.protocol import SEND_EOF

CUTS = ("flood", "bytes", "full", "unread")  # too many frames, too much held by all, too many connections, nobody reads
PIECE = 4096  # bytes that are looked at before the limits are
UNREAD = 2**20  # bytes of answers, pongs among them, that wait for a client to read
FRAME = 256  # bytes that a frame costs beside what it carries
HANDSHAKES = 64  # connections that may be on their way in, beside the open ones
LOG_LINES = 5  # lines on trouble with connections at once, and then one in LOG_SECONDS
LOG_SECONDS = 10.0


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


class Intake:
    """What all connections hold together."""

    def __init__(self, *, bytes_held: int, connections: int, frames_per_second: float, frames_at_once: int,
                 cut: Callable[[str], None]):
        """cut: hears the reason, one of CUTS, of each connection that is cut."""
        self.limit, self.most, self.cut = bytes_held, connections + HANDSHAKES, cut
        self.rate, self.burst = frames_per_second, frames_at_once
        self.held, self.connections = 0, set[Connection]()

    def connection(self, *args, **options) -> "Connection":
        """A new connection, for websockets' `create_connection`."""
        return Connection(self, *args, **options)

    def weigh(self, connection: "Connection") -> None:
        """Counts what a connection holds now, and cuts those in the way where all hold too much."""
        if connection not in self.connections:
            return
        now = connection.weight()
        self.held += now - connection.held
        connection.held = now
        connection.since = (connection.since or time.monotonic()) if connection.unfinished() else None
        while self.held > self.limit:
            waiting = [(each.since, id(each), each) for each in self.connections if each.since is not None]
            self.drop(min(waiting)[2] if waiting else connection, "bytes")

    def drop(self, connection: "Connection", reason: str) -> None:
        """Cuts a connection."""
        if connection in self.connections:
            self.leave(connection)
            self.cut(reason)
            connection.transport.abort()

    def leave(self, connection: "Connection") -> None:
        """A connection is over."""
        self.connections.discard(connection)
        self.held, connection.held = self.held - connection.held, 0


class Connection(ServerConnection):
    """A connection whose frames are counted."""

    def __init__(self, intake: Intake, *args, **options):
        super().__init__(*args, **options)
        self._intake, self._frames = intake, Budget(intake.rate, intake.burst)
        self._partial, self._whole = 0, collections.deque[int]()  # bytes of the message under way, of those that wait
        self.held = 0  # bytes, as counted last
        self.since: float | None = None  # when the unfinished message began

    def weight(self) -> int:
        """Bytes that are held for this client."""
        return len(self.protocol.reader.buffer) + self._partial + sum(self._whole)

    def unfinished(self) -> bool:
        """Whether a message, or the handshake, is still coming."""
        return bool(self._partial or self.protocol.reader.buffer)

    def answered(self) -> None:
        """The oldest whole message is done with."""
        self._whole.popleft()
        self._intake.weigh(self)

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._intake.connections.add(self)
        if len(self._intake.connections) > self._intake.most:
            self._intake.drop(self, "full")

    def data_received(self, data) -> None:
        for start in range(0, len(data), PIECE):
            if self.transport.is_closing():
                return
            super().data_received(data[start:start + PIECE])
            self._intake.weigh(self)
            if self.transport.get_write_buffer_size() > UNREAD:
                self._intake.drop(self, "unread")

    def send_data(self) -> None:
        """See ServerConnection. One write for all that waits, and none to who has gone: asyncio logs each of those."""
        waiting = self.protocol.data_to_send()
        if not self.transport.is_closing():
            whole, ends = b"".join(waiting), SEND_EOF in waiting
            self.protocol.writes = [*([whole] if whole else []), *([SEND_EOF] if ends else [])]
        super().send_data()

    def process_event(self, event) -> None:
        if isinstance(event, Frame):
            if not self._frames.take():
                return self._intake.drop(self, "flood")
            if event.opcode not in CTRL_OPCODES:
                self._partial += len(event.data) + FRAME
                if event.fin:
                    self._whole.append(self._partial)
                    self._partial = 0
        super().process_event(event)

    def connection_lost(self, exc) -> None:
        self._intake.leave(self)
        super().connection_lost(exc)


def quiet_logger() -> logging.Logger:
    """A logger for websockets that strangers cannot make write much."""
    logger, budget = logging.Logger("wamax.connections"), Budget(1 / LOG_SECONDS, LOG_LINES)
    logger.parent = logging.getLogger()
    logger.addFilter(lambda record: budget.take())
    return logger
