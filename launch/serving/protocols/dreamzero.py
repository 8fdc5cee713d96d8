"""What the published DreamZero repository's policy server and RoboArena's clients speak."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from launch.serving import messages
from launch.serving.engine import Answer, Request
from launch.serving.messages import MAX_NAME, BadRequest, Observation, Protocol, Reset


@dataclasses.dataclass(frozen=True, eq=False)
class DreamZero(Protocol):
    """DreamZero's and RoboArena's: an "endpoint" in the request, a bare array in the reply.

    The wire has fixed names for two cameras outside and one on the wrist, seven joints and a gripper; an embodiment
    with as many, in that order, can be served. The server keeps frames: a session's later chunks see its last four.
    """

    image_size: tuple[int, int] = (180, 320)
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
        """What the client hears first; published clients take these keys and no others."""
        return {"image_resolution": self.image_size, "needs_wrist_camera": True, "n_external_cameras": 2,
                "needs_stereo_camera": False, "needs_session_id": True, "action_space": "joint_position"}

    def parse(self, message) -> Observation | Reset:
        """Raises BadRequest."""
        endpoint = message.get("endpoint") if isinstance(message, Mapping) else None
        if endpoint not in ("infer", "reset"):
            raise BadRequest(f"'endpoint' should be 'infer' or 'reset', found {messages.kind(endpoint)}")
        session = messages.text(message, "session_id", MAX_NAME) or None
        if endpoint == "reset":
            return Reset(session)
        optional = {"observation/cartesian_position", "prompt", "session_id", "release"}
        vectors = "observation/joint_position", "observation/gripper_position"
        messages.check_keys(message, {"endpoint", *self.VIEWS, *vectors}, optional)
        names = [d.name for d in self.robot.embodiment.state]
        state = [messages.vector(message, key, part, rows=True)
                 for key, part in zip(vectors, (names[:self.JOINTS], names[self.JOINTS:]), strict=True)]
        views = dict(zip(self.robot.embodiment.views, self.VIEWS, strict=True))
        return Observation(session, False, messages.prompt(message, self.prompt), None,
                           messages.views(message, views, self.image_size), np.concatenate(state),
                           np.zeros((0, len(self.robot.embodiment.action))), messages.flag(message, "release"))

    def answer(self, answer: Answer, request: Request, timing: dict):
        """A message of the reply."""
        return answer.actions
