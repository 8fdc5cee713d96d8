"""What LingBot-VA's clients say and hear (arXiv 2601.21998; its published server).

    {"reset": True, "prompt": text}                     -> {}
    {"obs": {camera: uint8 [H, W, 3]}}                  -> {"action": float32 [dims, K, n]}
    {"compute_kv_cache": True, "obs": [{camera: ...}, ...], "state": [dims, K, n] as executed} -> {}

A client asks for a chunk, executes it, tells what it has seen and done, and asks again. A chunk is K latent frames of n
actions; an episode's first has one more in front, of zeros, which stands for the frame it begins with and is not
executed. Every frame of actions comes with as many pictures as a latent frame holds.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from launch.serving import messages
from launch.serving.engine import Answer, Request
from launch.serving.messages import MAX_NAME, BadRequest, Feedback, Observation, Protocol, Reset

PREFIX = "observation.images."
PUBLISHED = {"head": "cam_high", "left_wrist": "cam_left_wrist", "right_wrist": "cam_right_wrist"}  # RoboTwin's cameras


@dataclasses.dataclass(frozen=True, eq=False)
class LingBotVA(Protocol):
    """Cameras are called observation.images.NAME, of RoboTwin by the published names, else by the embodiment's.

    Pictures may have any size up to image_size. What else the published client sends along (guidance scales, flags of
    its visualisation, its own state and task) is let be: guidance is the server's to set.
    """

    image_size: tuple[int, int] = (480, 640)

    SENT_ALONG = ("imagine", "save_visualization", "video_guidance_scale", "action_guidance_scale")

    def __post_init__(self):
        """Raises ValueError where the robot has a state, of which the clients say nothing."""
        if self.robot.embodiment.state:
            raise ValueError(f"--protocol=lingbot_va sends no state; embodiment {self.robot.embodiment.name!r} of the "
                             f"checkpoint has {len(self.robot.embodiment.state)} state dimensions. Serve it with "
                             "--protocol=openpi")
        if self.robot.horizon != self.robot.layout.actions_per_block:
            raise ValueError(f"--protocol=lingbot_va executes whole chunks; embodiment {self.robot.embodiment.name!r} "
                             f"executes {self.robot.horizon} of {self.robot.layout.actions_per_block} actions")

    @property
    def cameras(self) -> dict[str, str]:
        """{view: key on the wire}."""
        return {view: PREFIX + PUBLISHED.get(view, view) for view in self.robot.embodiment.views}

    @property
    def shape(self) -> tuple[int, int, int]:
        """dims, latent frames of a chunk, actions of one."""
        frames = self.robot.layout.frames_per_block
        return len(self.robot.embodiment.action), frames, self.robot.layout.actions_per_block // frames

    def metadata(self) -> dict:
        """What the client hears first."""
        return {"protocol": "lingbot_va", "embodiment": self.robot.embodiment.name, "obs": list(self.cameras.values()),
                "action": list(self.shape), "names": [d.name for d in self.robot.embodiment.action],
                "keyframes": self.robot.layout.block_frames, "guard": self.guard}

    def parse(self, message) -> Observation | Reset | Feedback:
        """Raises BadRequest."""
        messages.check_map(message)
        session = messages.text(message, "session_id", MAX_NAME) or None
        known = {"prompt", "session_id", *self.SENT_ALONG}
        if messages.flag(message, "reset"):
            messages.check_keys(message, {"reset"}, known)
            return Reset(session, messages.prompt(message, self.prompt))
        if messages.flag(message, "compute_kv_cache"):
            messages.check_keys(message, {"compute_kv_cache", "obs", "state"}, known)
            return Feedback(session, self._pictures(message["obs"]), self._executed(message["state"]))
        messages.check_keys(message, {"obs"}, known | {"reset", "compute_kv_cache", "release"})
        return Observation(session, False, None, None, self._pictures([message["obs"]]), np.zeros(0),
                           np.zeros((0, self.shape[0])), messages.flag(message, "release"), first_only=True)

    def _pictures(self, frames) -> dict[str, np.ndarray]:
        """view -> uint8 [n, H, W, 3]."""
        if not isinstance(frames, list) or not 1 <= len(frames) <= self.frames:
            found = f"{len(frames)}" if isinstance(frames, list) else messages.kind(frames)
            raise BadRequest(f"'obs' should be a map of cameras, or a list of at most {self.frames}, found {found}")
        for frame in frames:
            if not isinstance(frame, Mapping) or (missing := sorted(set(self.cameras.values()) - frame.keys())):
                lacks = f" lacks {missing[0]!r} of" if isinstance(frame, Mapping) else " is no map; expected"
                raise BadRequest(f"an observation in 'obs'{lacks} {sorted(self.cameras.values())}")
        return {view: np.stack(self._same_size([frame[key] for frame in frames], key))
                for view, key in self.cameras.items()}

    def _same_size(self, pictures: list, key: str) -> list[np.ndarray]:
        for picture in pictures:
            messages.picture(picture, key, self.image_size)
            if picture.shape != pictures[0].shape:
                raise BadRequest(f"{key!r} should have one size, found {messages.kind(pictures[0])} and "
                                 f"{messages.kind(picture)}")
        return pictures

    def _executed(self, value) -> np.ndarray:
        """The chunk's actions, [K n, dims], without those that stand for the first frame."""
        dims, frames, each = self.shape
        if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float64) or value.ndim != 3 \
                or value.shape not in ((dims, frames, each), (dims, frames + 1, each)) or not np.isfinite(value).all():
            raise BadRequest(f"'state' should be the actions as executed, float32 [{dims}, {frames}, {each}] (or "
                             f"{frames + 1} frames of the first chunk) and finite, found {messages.kind(value)}")
        return value[:, -frames:].reshape(dims, -1).T.astype(np.float64)

    def answer(self, answer: Answer, request: Request, timing: dict):
        """A message of the reply."""
        actions = answer.actions.T.reshape(self.shape)
        if request.key[1] == 0:  # the episode's first chunk
            actions = np.concatenate([np.zeros_like(actions[:, :1]), actions], axis=1)
        return {"action": actions, "interventions": answer.interventions, "server_timing": timing}

    def done(self) -> dict:
        return {}
