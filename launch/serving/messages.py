"""What a message of any protocol holds, and the checks of its fields; a mistake is a sentence for the client."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from data_pipelines.robots.robot import Robot
from launch.serving import safety
from launch.serving.engine import Answer, Request

MAX_NAME, MAX_PROMPT = 128, 2000  # characters of a session's id and of a prompt
OVERHEAD = 8192  # bytes of a message beside pictures, numbers and texts


class BadRequest(ValueError):
    """A request that is refused; the sentence goes to the client, and the connection stays open."""


class Observation(NamedTuple):
    """One request for actions."""

    session: str | None  # None: the connection's own
    reset: bool  # begin a new window
    prompt: str | None  # None: that of the reset before
    step: int | None  # control step of the last frame, where the client counts
    views: dict  # embodiment's view -> uint8 [n, H, W, 3], oldest first
    state: np.ndarray  # float64 [state dims], robot units
    in_flight: np.ndarray  # float64 [k, action dims]: actions after the last frame that will be executed anyhow
    release: bool = False  # let a robot go that is held
    first_only: bool = False  # the frame is the episode's first: what was seen since has come in a `Feedback`


class Reset(NamedTuple):
    """Ends an episode; None: every one of the connection's."""

    session: str | None
    prompt: str | None = None  # prompt of the next episode, where its observations have none


class Feedback(NamedTuple):
    """What was seen and done since the chunk before; the next request goes on from it."""

    session: str | None
    views: dict  # as of an Observation
    executed: np.ndarray  # float64 [n, action dims], robot units


@dataclasses.dataclass(frozen=True, eq=False)
class Protocol(abc.ABC):
    """Turns a message into an `Observation`, a `Reset` or a `Feedback`, and an answer into a message."""

    robot: Robot
    image_size: tuple[int, int]  # height, width of every view
    prompt: str | None = None  # where the client sends none; None: it must
    hold_gap: float | None = None  # the guard's, for clients to know

    remembers: ClassVar[int] = 0  # frames that the server keeps; 0: they are the client's to keep
    no_gap: ClassVar[str] = ""  # clients that give no gap between imagined and observed latents, and so are never held

    @abc.abstractmethod
    def metadata(self) -> dict:
        """What the client hears first."""

    @abc.abstractmethod
    def parse(self, message) -> Observation | Reset | Feedback:
        """Raises BadRequest."""

    @abc.abstractmethod
    def answer(self, answer: Answer, request: Request, timing: dict):
        """A message of the reply."""

    def done(self) -> str | dict:
        """The reply where there are no actions to send."""
        return "reset successful"

    @property
    def guard(self) -> dict:
        """What stands between the model and the robot, for a client to know."""
        robot = self.robot.embodiment
        return {"limits": safety.limits(robot), "warning": safety.unlimited(robot), "hold_gap": self.hold_gap}

    @property
    def frames(self) -> int:
        """The most frames of a view in one message."""
        return max(self.robot.layout.block_frames, self.remembers)

    @property
    def message_bytes(self) -> int:
        """Four times what the largest message takes: a picture of another size is worth a sentence."""
        embodiment, (height, width) = self.robot.embodiment, self.image_size
        pictures = self.frames * len(embodiment.views) * height * width * 3
        numbers = 8 * (len(embodiment.state) + 2 * self.robot.layout.actions_per_block * len(embodiment.action))
        return 4 * (pictures + numbers + 4 * (MAX_NAME + MAX_PROMPT)) + OVERHEAD


def check_map(message) -> None:
    """Raises BadRequest where a message is no map."""
    if not isinstance(message, Mapping):
        raise BadRequest(f"an observation is a map of names to values, found {kind(message)}")


def check_keys(message, required: set[str], optional: set[str]) -> None:
    """Raises BadRequest where a key is missing or unknown."""
    check_map(message)
    missing, unknown = sorted(required - message.keys()), sorted(map(str, message.keys() - required - optional))
    if missing:
        raise BadRequest(f"the observation lacks {', '.join(map(repr, missing))}; expected {sorted(required)}")
    if unknown:
        raise BadRequest(f"the observation has {unknown[0][:80]!r}, which nobody reads; known beside the required "
                         f"keys: {sorted(optional)}")


def views(message: Mapping, keys: dict[str, str], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """view -> uint8 [n, H, W, 3], as many frames of each."""
    views = {view: image(message[key], key, size) for view, key in keys.items()}
    counts = {len(frames) for frames in views.values()}
    if len(counts) > 1:
        raise BadRequest("views should have as many frames each, found "
                         + ", ".join(f"{keys[view]!r} {len(frames)}" for view, frames in views.items()))
    return views


def image(value, key: str, size: tuple[int, int]) -> np.ndarray:
    """uint8 [n, H, W, 3]."""
    height, width = size
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (3, 4) or not value.size \
            or value.shape[-3:] != (height, width, 3):
        raise BadRequest(f"{key!r} should be uint8 [{height}, {width}, 3] or [frames, {height}, {width}, 3], found "
                         f"{kind(value)}")
    return value if value.ndim == 4 else value[None]


def picture(value, key: str, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] of any size up to that one."""
    height, width = size
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 \
            or not 0 < len(value) <= height or not 0 < value.shape[1] <= width or value.shape[2] != 3:
        raise BadRequest(f"{key!r} should be uint8 [at most {height}, at most {width}, 3], found {kind(value)}")
    return value


def vector(message: Mapping, key: str, names: list[str], rows: bool = False) -> np.ndarray:
    """float64 [len(names)]; rows: a row of them, [1, len(names)], will do as well."""
    value = message[key]
    if rows and isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == 1:
        value = value[0]
    if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float64) or value.shape != (len(names),):
        raise BadRequest(f"{key!r} should be float32 [{len(names)}] ({', '.join(names)}), found {kind(value)}")
    bad = np.flatnonzero(~np.isfinite(value))
    if len(bad):
        raise BadRequest(f"{key!r}: {names[bad[0]]} is {value[bad[0]]}; a state must be finite")
    return value.astype(np.float64)


def text(message: Mapping, key: str, limit: int, default: str = "") -> str:
    """A text of at most so many characters."""
    value = message.get(key, default)
    if not isinstance(value, str) or len(value) > limit:
        found = f"{len(value)} characters" if isinstance(value, str) else kind(value)
        raise BadRequest(f"{key!r} should be a text of at most {limit} characters, found {found}")
    return value


def flag(message: Mapping, key: str) -> bool:
    """True or false; false where the key is absent."""
    value = message.get(key, False)
    if not isinstance(value, bool | np.bool_):
        raise BadRequest(f"{key!r} should be true or false, found {kind(value)}")
    return bool(value)


def prompt(message: Mapping, default: str | None, key: str = "prompt") -> str:
    """The client's prompt, or the server's."""
    if default is None and key not in message:
        raise BadRequest(f"the observation lacks {key!r}, and this server has none for its robot: send what the robot "
                         "shall do, or start the server with --prompt")
    return text(message, key, MAX_PROMPT, default or "")


def kind(value) -> str:
    """A value in a few words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return repr(value)[:60] if isinstance(value, str | int | float | None) else type(value).__name__
