"""What LingBot-VLA's clients say and hear (Robbyant/lingbot-vla at 61ef6b1, deploy/lingbot_robotwin_policy.py).

    {"reset": True, "robo_name": name, ...}                                           -> {"action": None}
    {"observation.images.CAMERA": uint8 [H, W, 3], ..., "observation.state": [dims], "task": text}
                                                                                      -> {"action": float32 [N, dims]}

A request is answered by the whole chunk, as the published server does with chunk_ret; how much of it is executed before
the next request is the client's business.
"""

import dataclasses

import numpy as np

from launch.serving import messages
from launch.serving.engine import Answer, Request
from launch.serving.messages import MAX_NAME, Observation, Protocol, Reset


@dataclasses.dataclass(frozen=True, eq=False)
class LingBotVLA(Protocol):
    """Cameras are called observation.images.NAME, by the embodiment's names; RoboTwin's are the published ones.

    Pictures may have any size up to image_size. The name and the path that come with a reset are let be: what is served
    is the server's to say.
    """

    image_size: tuple[int, int] = (480, 640)
    no_gap = "models that imagine no video"

    @property
    def cameras(self) -> dict[str, str]:
        """{view: key on the wire}."""
        return {view: f"observation.images.{view}" for view in self.robot.embodiment.views}

    def metadata(self) -> dict:
        """What the client hears first."""
        robot = self.robot.embodiment
        return {"protocol": "lingbot_vla", "embodiment": robot.name, "images": list(self.cameras.values()),
                "state": [d.name for d in robot.state], "action": [self.robot.horizon, len(robot.action)],
                "names": [d.name for d in robot.action], "guard": self.guard}

    def parse(self, message) -> Observation | Reset:
        """Raises BadRequest."""
        messages.check_map(message)
        session = {"session_id"}
        if messages.flag(message, "reset"):
            messages.check_keys(message, {"reset"}, session | {"robo_name", "path_to_pi_model", "task"})
            return Reset(messages.text(message, "session_id", MAX_NAME) or None)
        names = [d.name for d in self.robot.embodiment.state]
        state = {"observation.state"} if names else set()
        messages.check_keys(message, {*self.cameras.values(), *state}, session | {"task", "reset", "release"})
        return Observation(
            messages.text(message, "session_id", MAX_NAME) or None, False,
            messages.prompt(message, self.prompt, "task"), None,
            {view: messages.picture(message[key], key, self.image_size)[None] for view, key in self.cameras.items()},
            messages.vector(message, "observation.state", names) if names else np.zeros(0),
            np.zeros((0, len(self.robot.embodiment.action))), messages.flag(message, "release"))

    def answer(self, answer: Answer, request: Request, timing: dict):
        """A message of the reply."""
        return {"action": answer.actions, "interventions": answer.interventions, "server_timing": timing}

    def done(self) -> dict:
        return {"action": None}
