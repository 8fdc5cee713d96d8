"""What clients say and hear: openpi's form, that of DreamZero and RoboArena, LingBot-VA's and LingBot-VLA's.

OpenPi is what openpi-client (the package of the published openpi repository) sends and reads. DreamZero is what the
published DreamZero repository's policy server and RoboArena's clients speak; for the others see
launch/serving/lingbot_va.py and launch/serving/lingbot_vla.py.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from launch.serving import messages
from launch.serving.engine import Answer, Request
from launch.serving.lingbot_va import LingBotVA
from launch.serving.lingbot_vla import LingBotVLA
from launch.serving.messages import MAX_NAME, BadRequest, Observation, Protocol, Reset, Seen


@dataclasses.dataclass(frozen=True, eq=False)
class OpenPi(Protocol):
    """openpi-client's WebsocketClientPolicy: a flat dict in, a dict with "actions" out.

    A connection is an episode, unless the observation names a "session_id". Beside the announced keys a client may
    send "prompt", "session_id", "step", "reset" and "release"; images may hold a block's frames in place of one.
    """

    no_gap = "clients that send single frames"

    def metadata(self) -> dict:
        """What the client hears first."""
        robot, layout = self.robot.embodiment, self.robot.layout
        state = {"observation/state": {"shape": [len(robot.state)], "dtype": "float32"}} if robot.state else {}
        return {"protocol": "openpi", "embodiment": robot.name, "observation": {
            **{f"observation/{view}": {"shape": [*self.image_size, 3], "dtype": "uint8"} for view in robot.views},
            **state},
            "optional": {"prompt": {"dtype": "str", "default": self.prompt}, "session_id": {"dtype": "str"},
                         "step": {"dtype": "int"}, "reset": {"dtype": "bool", "default": False},
                         "release": {"dtype": "bool", "default": False},
                         "actions_in_flight": {"shape": [None, len(robot.action)], "dtype": "float32"}},
            "frames": {"start": 1, "continue": layout.block_frames, "every": layout.frame_stride},
            "actions": {"shape": [self.robot.horizon, len(robot.action)], "dtype": "float32",
                        "names": [d.name for d in robot.action]},
            "guard": self.guard, "state_names": [d.name for d in robot.state], "rate": robot.rate}

    def parse(self, message) -> Observation:
        """Raises BadRequest."""
        robot = self.robot.embodiment
        images = {view: f"observation/{view}" for view in robot.views}
        optional = {"prompt", "session_id", "step", "reset", "release", "actions_in_flight"}
        messages.check_keys(message, {*images.values(), *(["observation/state"] if robot.state else [])}, optional)
        step = message.get("step")
        if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0):
            raise BadRequest(f"'step' should be a whole number from 0 on, found {messages.kind(step)}")
        names = [d.name for d in robot.state]
        return Observation(
            messages.text(message, "session_id", MAX_NAME) or None, messages.flag(message, "reset"),
            messages.prompt(message, self.prompt), None if step is None else int(step),
            messages.views(message, images, self.image_size),
            messages.vector(message, "observation/state", names) if names else np.zeros(0),
            self._in_flight(message.get("actions_in_flight")), messages.flag(message, "release"))

    def _in_flight(self, value) -> np.ndarray:
        horizon, dims = self.robot.horizon, len(self.robot.embodiment.action)
        if value is None:
            return np.zeros((0, dims))
        if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float64) or value.ndim != 2 \
                or value.shape[1] != dims or len(value) > horizon or not np.isfinite(value).all():
            raise BadRequest(f"'actions_in_flight' should be float32 [at most {horizon}, {dims}] and finite, found "
                             f"{messages.kind(value)}")
        return value.astype(np.float64)

    def answer(self, answer: Answer, request: Request, timing: dict):
        """A message of the reply."""
        return {"actions": answer.actions, "interventions": answer.interventions, "server_timing": timing}


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


PROTOCOLS: dict[str, Callable[..., Protocol]] = {"openpi": OpenPi, "dreamzero": DreamZero, "lingbot_va": LingBotVA,
                                                 "lingbot_vla": LingBotVLA}

__all__ = ["PROTOCOLS", "BadRequest", "DreamZero", "LingBotVA", "LingBotVLA", "Observation", "OpenPi", "Protocol",
           "Reset", "Seen"]
