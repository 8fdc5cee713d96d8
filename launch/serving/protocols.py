"""What clients say and hear: openpi's form, and that of DreamZero and RoboArena.

OpenPi is what openpi-client (the package of the published openpi repository) sends and reads. DreamZero is what the
published DreamZero repository's policy server and RoboArena's clients speak.

A protocol turns a message into an `Observation` or a `Reset` and an answer into a message. What it refuses raises
`BadRequest` with a sentence for the client.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from data_pipelines.robots.robot import Robot
from launch.serving.engine import Answer

MAX_NAME, MAX_PROMPT = 128, 2000  # characters of a session's id and of a prompt


class BadRequest(ValueError):
    """A request that is refused; the sentence goes to the client, and the connection stays open."""


class Observation(NamedTuple):
    """One request for actions."""

    session: str | None  # None: the connection's own
    reset: bool  # begin a new window
    prompt: str
    step: int | None  # control step of the last frame, where the client counts
    views: dict  # embodiment's view -> uint8 [n, H, W, 3], oldest first
    state: np.ndarray  # float64 [state dims], robot units
    in_flight: np.ndarray  # float64 [k, action dims]: actions after the last frame that will be executed anyhow


class Reset(NamedTuple):
    """Ends an episode; None: every one of the connection's."""

    session: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class OpenPi:
    """openpi-client's WebsocketClientPolicy: a flat dict in, a dict with "actions" out.

    A connection is an episode, unless the observation names a "session_id". Beside the announced keys a client may
    send "prompt", "session_id", "step" and "reset"; images may hold a block's frames in place of one.
    """

    robot: Robot
    image_size: tuple[int, int]  # height, width of every view
    prompt: str | None  # where the client sends none; None: it must
    remembers = 0  # frames are the client's to keep

    def metadata(self) -> dict:
        """What the client hears first."""
        layout = self.robot.layout
        return {"protocol": "openpi", "embodiment": self.robot.embodiment.name, "observation": {
            **{f"observation/{view}": {"shape": [*self.image_size, 3], "dtype": "uint8"}
               for view in self.robot.embodiment.views},
            "observation/state": {"shape": [len(self.robot.embodiment.state)], "dtype": "float32"}},
            "optional": {"prompt": {"dtype": "str", "default": self.prompt}, "session_id": {"dtype": "str"},
                         "step": {"dtype": "int"}, "reset": {"dtype": "bool", "default": False},
                         "actions_in_flight": {"shape": [None, len(self.robot.embodiment.action)],
                                               "dtype": "float32"}},
            "frames": {"start": 1, "continue": layout.block_frames, "every": layout.frame_stride},
            "actions": {"shape": [self.robot.horizon, len(self.robot.embodiment.action)], "dtype": "float32",
                        "names": [d.name for d in self.robot.embodiment.action]},
            "state_names": [d.name for d in self.robot.embodiment.state], "rate": self.robot.embodiment.rate}

    def parse(self, message) -> Observation:
        """Raises BadRequest."""
        images = {view: f"observation/{view}" for view in self.robot.embodiment.views}
        optional = {"prompt", "session_id", "step", "reset", "actions_in_flight"}
        _check_keys(message, {*images.values(), "observation/state"}, optional)
        reset = message.get("reset", False)
        if not isinstance(reset, bool | np.bool_):
            raise BadRequest(f"'reset' should be true or false, found {_kind(reset)}")
        step = message.get("step")
        if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0):
            raise BadRequest(f"'step' should be a whole number from 0 on, found {_kind(step)}")
        return Observation(
            _text(message, "session_id", MAX_NAME) or None, bool(reset),
            _prompt(message, self.prompt), None if step is None else int(step),
            _views(message, images, self.image_size),
            _vector(message, "observation/state", [d.name for d in self.robot.embodiment.state]),
            self._in_flight(message.get("actions_in_flight")))

    def _in_flight(self, value) -> np.ndarray:
        horizon, dims = self.robot.horizon, len(self.robot.embodiment.action)
        if value is None:
            return np.zeros((0, dims))
        if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float64) or value.ndim != 2 \
                or value.shape[1] != dims or len(value) > horizon or not np.isfinite(value).all():
            raise BadRequest(f"'actions_in_flight' should be float32 [at most {horizon}, {dims}] and finite, found "
                             f"{_kind(value)}")
        return value.astype(np.float64)

    def answer(self, answer: Answer, timing: dict):
        """A message of the reply."""
        return {"actions": answer.actions, "interventions": answer.interventions, "server_timing": timing}


@dataclasses.dataclass(frozen=True, eq=False)
class DreamZero:
    """DreamZero's and RoboArena's: an "endpoint" in the request, a bare array in the reply.

    The wire has fixed names for two cameras outside and one on the wrist, seven joints and a gripper; an embodiment
    with as many, in that order, can be served. The server keeps frames: a session's later chunks see its last four.
    """

    robot: Robot
    image_size: tuple[int, int] = (180, 320)
    prompt: str | None = None  # where the client sends none; None: it must
    remembers = 4

    VIEWS = ("observation/exterior_image_0_left", "observation/exterior_image_1_left", "observation/wrist_image_left")
    JOINTS = 7

    def __post_init__(self):
        """Raises ValueError where the embodiment is another one."""
        robot = self.robot.embodiment
        found = len(robot.views), len(robot.state), len(robot.action)
        expected = len(self.VIEWS), self.JOINTS + 1, self.JOINTS + 1
        if found != expected:
            raise ValueError(f"--protocol=dreamzero speaks of {expected[0]} views, {expected[1]} state and "
                             f"{expected[2]} action dimensions; embodiment {robot.name!r} of the checkpoint has "
                             f"{found[0]}, {found[1]} and {found[2]}. Serve it with --protocol=openpi")

    def metadata(self) -> dict:
        """What the client hears first."""
        return {"image_resolution": self.image_size, "needs_wrist_camera": True, "n_external_cameras": 2,
                "needs_stereo_camera": False, "needs_session_id": True, "action_space": "joint_position"}

    def parse(self, message) -> Observation | Reset:
        """Raises BadRequest."""
        endpoint = message.get("endpoint") if isinstance(message, Mapping) else None
        if endpoint not in ("infer", "reset"):
            raise BadRequest(f"'endpoint' should be 'infer' or 'reset', found {_kind(endpoint)}")
        session = _text(message, "session_id", MAX_NAME) or None
        if endpoint == "reset":
            return Reset(session)
        optional = {"observation/cartesian_position", "prompt", "session_id"}
        vectors = "observation/joint_position", "observation/gripper_position"
        _check_keys(message, {"endpoint", *self.VIEWS, *vectors}, optional)
        names = [d.name for d in self.robot.embodiment.state]
        state = [_vector(message, vectors[0], names[:self.JOINTS]), _vector(message, vectors[1], names[self.JOINTS:])]
        views = dict(zip(self.robot.embodiment.views, self.VIEWS, strict=True))
        return Observation(session, False, _prompt(message, self.prompt), None,
                           _views(message, views, self.image_size), np.concatenate(state),
                           np.zeros((0, len(self.robot.embodiment.action))))

    def answer(self, answer: Answer, timing: dict):
        """A message of the reply."""
        return answer.actions


PROTOCOLS: dict[str, Callable] = {"openpi": OpenPi, "dreamzero": DreamZero}


def _check_keys(message, required: set[str], optional: set[str]) -> None:
    if not isinstance(message, Mapping):
        raise BadRequest(f"an observation is a map of names to values, found {_kind(message)}")
    missing, unknown = sorted(required - message.keys()), sorted(map(str, message.keys() - required - optional))
    if missing:
        raise BadRequest(f"the observation lacks {', '.join(map(repr, missing))}; expected {sorted(required)}")
    if unknown:
        raise BadRequest(f"the observation has {unknown[0][:80]!r}, which nobody reads; known beside the required "
                         f"keys: {sorted(optional)}")


def _views(message: Mapping, keys: dict[str, str], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """view -> uint8 [n, H, W, 3], as many frames of each."""
    views = {view: _image(message[key], key, size) for view, key in keys.items()}
    counts = {len(frames) for frames in views.values()}
    if len(counts) > 1:
        raise BadRequest("views should have as many frames each, found "
                         + ", ".join(f"{keys[view]!r} {len(frames)}" for view, frames in views.items()))
    return views


def _image(value, key: str, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (3, 4) or not value.size \
            or value.shape[-3:] != (height, width, 3):
        raise BadRequest(f"{key!r} should be uint8 [{height}, {width}, 3] or [frames, {height}, {width}, 3], found "
                         f"{_kind(value)}")
    return value if value.ndim == 4 else value[None]


def _vector(message: Mapping, key: str, names: list[str]) -> np.ndarray:
    value = message[key]
    if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float64) or value.shape != (len(names),):
        raise BadRequest(f"{key!r} should be float32 [{len(names)}] ({', '.join(names)}), found {_kind(value)}")
    bad = np.flatnonzero(~np.isfinite(value))
    if len(bad):
        raise BadRequest(f"{key!r}: {names[bad[0]]} is {value[bad[0]]}; a state must be finite")
    return value.astype(np.float64)


def _text(message: Mapping, key: str, limit: int, default: str = "") -> str:
    value = message.get(key, default)
    if not isinstance(value, str) or len(value) > limit:
        found = f"{len(value)} characters" if isinstance(value, str) else _kind(value)
        raise BadRequest(f"{key!r} should be a text of at most {limit} characters, found {found}")
    return value


def _prompt(message: Mapping, default: str | None) -> str:
    if default is None and "prompt" not in message:
        raise BadRequest("the observation lacks 'prompt', and this server has none for its robot: send what the robot "
                         "shall do, or start the server with --prompt")
    return _text(message, "prompt", MAX_PROMPT, default or "")


def _kind(value) -> str:
    """A value in a few words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return repr(value)[:60] if isinstance(value, str | int | float | None) else type(value).__name__
