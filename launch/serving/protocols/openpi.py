"""What openpi-client sends and reads (the package of the published openpi repository)."""

import dataclasses

import numpy as np

from launch.serving import messages
from launch.serving.engine import Answer, Request
from launch.serving.messages import MAX_NAME, BadRequest, Observation, Protocol

VERSION = 1  # of the messages, for clients of Wamax's own: raised by hand where a field changes its meaning


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
        return {"protocol": "openpi", "version": VERSION, "embodiment": robot.name, "observation": {
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
