"""One episode that is being served."""

import dataclasses
import time
from typing import NamedTuple

import numpy as np

from launch.serving.messages import Feedback


class Guarded(NamedTuple):
    """What the guard is told of a session's chunk before."""

    last: np.ndarray | None = None  # [action dims], its last command
    held: bool = False


@dataclasses.dataclass(eq=False)
class Session:
    """An episode."""

    name: str
    place: int  # number of the engine's session
    number: int  # sessions opened before it
    owner: object | None  # the open connection that uses it
    block: int = 0  # predicted last; 0: nothing yet
    chunks: int = 0  # predicted so far; names the next noise
    step: int | None = None  # control step of the last frame, where the client counts
    prompt: str = ""
    busy: bool = False  # a request is on its way
    used: float = dataclasses.field(default_factory=time.monotonic)  # when a request came last
    guarded: Guarded = dataclasses.field(default_factory=Guarded)
    feedback: Feedback | None = None  # what was seen and done since, where the client says so before it asks
    frames: dict = dataclasses.field(default_factory=dict)  # view -> the last frames, where the server keeps them
