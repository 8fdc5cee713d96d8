"""A policy that a server runs, asked over its WebSocket like one of this process (extra: serve).

It speaks to `launch.serve` in openpi-client's form (launch/serving/protocols/openpi.py).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from launch.serving import wire
from launch.serving.protocols.openpi import VERSION
from launch.simulation.closed_loop import Run, next_observation
from world_model import kinds

_SIZE = kinds.fields({"shape": kinds.list_of(kinds.whole())}, required=("shape",))
_METADATA = kinds.fields({
    "embodiment": kinds.text, "observation": kinds.map_of(_SIZE), "state_names": kinds.list_of(kinds.text),
    "optional": kinds.fields({"prompt": kinds.fields({"default": kinds.optional(kinds.text)})}, required=("prompt",)),
    "frames": kinds.fields({"continue": kinds.whole(1), "every": kinds.whole(1)}, required=("continue", "every")),
    "actions": kinds.fields({"shape": kinds.row(kinds.whole(1), kinds.whole(1)), "names": kinds.list_of(kinds.text)},
                            required=("shape", "names"))},
    required=("embodiment", "observation", "state_names", "optional", "frames", "actions"))


class ServerError(RuntimeError):
    """The server is not there, is another one than was meant, or refuses."""


class Announced(NamedTuple):
    """What the metadata of a server say of its robot and model."""

    embodiment: str
    sizes: dict[str, tuple[int, int]]  # view -> height, width of the pictures that are sent
    state: list[str]
    action: list[str]
    instruction: str  # where none is given; empty: one must be
    horizon: int  # actions of a chunk
    actions_per_block: int
    frame_stride: int  # control steps from one frame of a block to the next

    @classmethod
    def read(cls, metadata) -> "Announced":
        """Raises ValueError where they are not those of OpenPi.metadata."""
        kinds.check(metadata, _METADATA, "its metadata")
        views = {key.removeprefix("observation/"): tuple(each["shape"][:2])
                 for key, each in metadata["observation"].items() if each.get("dtype") == "uint8"}
        frames, actions = metadata["frames"], metadata["actions"]
        return cls(metadata["embodiment"], views, metadata["state_names"], actions["names"],
                   metadata["optional"]["prompt"].get("default") or "", actions["shape"][0],
                   frames["continue"] * frames["every"], frames["every"])


class ServedPolicy:
    """A policy of `closed_loop.play`; each episode under way has a connection, so that the server can batch them."""

    def __init__(self, address: str, token_file: str | Path | None = None):
        """address: ws://HOST:PORT, or wss://. Raises ServerError, or OSError where the token cannot be read."""
        self.address = address if "://" in address else f"ws://{address}"
        self._token = Path(token_file).read_text().strip() if token_file else ""
        self._connections: list[ClientConnection] = []
        self.announced = self._open()

    def __call__(self, runs: list[Run]) -> list[np.ndarray]:
        """Raises ServerError, after which all connections are closed."""
        try:
            return self._ask(runs)
        except BaseException as error:  # what has not been read would be taken for the next answer
            self.close()
            if isinstance(error, ConnectionClosed | OSError | wire.WireError):
                raise ServerError(f"{self.address} has ceased to answer ({error}): start it again, and then the "
                                  "episode") from error
            raise

    def close(self) -> None:
        """Ends all connections; the next question opens new ones."""
        while self._connections:
            self._connections.pop().close()

    def _ask(self, runs: list[Run]) -> list[np.ndarray]:
        while len(self._connections) < len(runs):
            self._open()
        pairs = list(zip(self._connections, runs, strict=False))
        for connection, run in pairs:
            connection.send(wire.pack(self._message(run)))
        return [self._chunk(connection.recv(), run) for connection, run in pairs]

    def _open(self) -> Announced:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        try:
            self._connections.append(connect(self.address, compression=None, additional_headers=headers))
            return self._read(self._connections[-1].recv(timeout=10, decode=False))
        except InvalidStatus as error:
            said = error.response.body.decode(errors="replace").strip()
            raise ServerError(f"{self.address} turned us away: {said}") from error
        except (OSError, WebSocketException) as error:
            raise ServerError(f"no policy server answers at {self.address} ({str(error) or type(error).__name__}): "
                              'start `python -m launch.serve` there and wait until it says "serving on"') from error

    def _read(self, first: bytes) -> Announced:
        """Raises ServerError where the server's first message is not one of `launch.serve`."""
        try:
            metadata = kinds.check(wire.unpack(first), kinds.fields({"protocol": kinds.text}, ("protocol",)),
                                   "its first message")
            if metadata["protocol"] != "openpi":
                raise ValueError(f"it speaks the form {metadata['protocol']!r}; start it with --protocol=openpi")
            if metadata.get("version") != VERSION:
                raise ValueError(f"its messages are of version {metadata.get('version')}, and ours of version "
                                 f"{VERSION}; use the same Wamax on both sides")
            return Announced.read(metadata)
        except ValueError as error:
            self.close()
            raise ServerError(f"{self.address} cannot be asked: {error}") from error

    def _message(self, run: Run) -> dict:
        told = self.announced
        seen = next_observation(run, told.actions_per_block, told.frame_stride, told.instruction, len(told.action))
        for view, frames in seen.views.items():
            if frames.shape[1:3] != told.sizes[view]:
                found, taken = ("x".join(map(str, size)) for size in (frames.shape[1:3], told.sizes[view]))
                raise ServerError(f"camera {view!r} gives pictures of {found}, and {self.address} takes {taken}: "
                                  f"start it with --image_size={found}")
        state = {"observation/state": seen.state.astype(np.float32)} if told.state else {}
        return {"session_id": seen.session, "reset": seen.reset, "prompt": seen.prompt, **state,
                **{f"observation/{view}": frames for view, frames in seen.views.items()}}

    def _chunk(self, reply: bytes | str, run: Run) -> np.ndarray:
        if isinstance(reply, str):
            raise ServerError(f"{self.address} refuses: {reply}")
        answer, told = wire.unpack(reply), self.announced
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(actions, np.ndarray) or actions.shape != (told.horizon, len(told.action)):
            raise ServerError(f"{self.address} should answer {told.horizon} actions of {len(told.action)} numbers, "
                              f"found {getattr(actions, 'shape', answer)}")
        run.imagined.append((len(run.actions), None))
        run.interventions.update(answer.get("interventions", {}))
        return actions
