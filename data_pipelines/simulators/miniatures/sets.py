"""The columns of the public data sets that recipes read, as their cards and readers name them."""

import dataclasses
from collections.abc import Mapping

from data_pipelines.simulators.miniatures.fields import Field, Numbers, Picture, Text


@dataclasses.dataclass(frozen=True)
class Miniature:
    """A data set in small."""

    kind: str  # rlds | lerobot | video_files
    rate: float
    fields: Mapping[str, Field]  # a step's; RLDS has "/" between levels
    version: str = ""  # LeRobot's format
    episode: Mapping[str, Field | bool | int] = dataclasses.field(default_factory=dict)  # fields of an RLDS episode
    keep: str = ""  # file beside the set with the ranges that are kept, by this name of an episode
    episodes: int = 3
    steps: int = 60


def _cameras(*names: str, height: int = 480, width: int = 640, prefix: str = "observation.images.") -> dict:
    return {f"{prefix}{name}": Picture(height, width) for name in names}


MINIATURES = {
    "droid": Miniature("rlds", 15.0, {
        **_cameras("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left", height=180, width=320,
                   prefix="observation/"),
        "observation/cartesian_position": Numbers(6, dtype="float64"),
        "observation/joint_position": Numbers(7, -2, 2, "float64"),
        "observation/gripper_position": Numbers(1, 0, 1, "float64"),
        "action_dict/cartesian_position": Numbers(6, dtype="float64"),
        "action_dict/cartesian_velocity": Numbers(6, dtype="float64"),
        "action_dict/gripper_position": Numbers(1, 0, 1, "float64", "switch"),
        "action_dict/gripper_velocity": Numbers(1, dtype="float64"),
        "action_dict/joint_position": Numbers(7, -2, 2, "float64"),
        "action_dict/joint_velocity": Numbers(7, dtype="float64"), "action": Numbers(7, dtype="float64"),
        "language_instruction": Text(), "language_instruction_2": Text(), "language_instruction_3": Text()},
        episode={"episode_metadata/file_path": Text("lab/success/{}/trajectory.h5"),
                 "episode_metadata/recording_folderpath": Text("lab/success/{}/recordings")},
        keep="lab/success/{0}/recordings--lab/success/{0}/trajectory.h5"),
    "bridge": Miniature("rlds", 5.0, {
        **_cameras("image_0", "image_1", height=256, width=256, prefix="observation/"),
        "observation/state": Numbers(7, 0, 1), "action": Numbers(7, 0, 1, still_first=True),
        "language_instruction": Text()},
        episode={"episode_metadata/file_path": Text("raw/{}"), "episode_metadata/episode_id": 1,
                 "episode_metadata/has_language": True}, steps=40),
    "fractal": Miniature("rlds", 3.0, {
        **_cameras("image", height=256, width=320, prefix="observation/"),
        "observation/base_pose_tool_reached": Numbers(7), "observation/gripper_closed": Numbers(1, 0, 1, kind="switch"),
        "observation/natural_language_instruction": Text(), "action/world_vector": Numbers(3, -0.2, 0.2),
        "action/rotation_delta": Numbers(3, -0.2, 0.2), "action/gripper_closedness_action": Numbers(1, kind="pulse"),
        "action/base_displacement_vector": Numbers(2), "action/terminate_episode": Numbers(3, 0, 1, "int32", "switch")},
        episode={"aspects/success": True}, steps=40),
    "libero": Miniature("lerobot", 10.0, {
        **_cameras("image", "wrist_image", height=256, width=256, prefix=""), "state": Numbers(8),
        "actions": Numbers(7, kind="smooth")}, version="v2.0"),
    "robotwin": Miniature("lerobot", 50.0, {
        **_cameras("cam_high", "cam_left_wrist", "cam_right_wrist"), "observation.state": Numbers(16, kind="poses"),
        "action": Numbers(16, kind="poses")}, version="v2.1", episodes=2, steps=80),
    "agibot_world": Miniature("lerobot", 30.0, {
        **_cameras("head", "hand_left", "hand_right"),
        "observation.states.joint.position": Numbers(14, -2, 2),
        "observation.states.effector.position": Numbers(2, 35, 120),
        "observation.states.head.position": Numbers(2, -0.5, 0.5),
        "observation.states.waist.position": Numbers(2, 0, 0.5),
        "actions.joint.position": Numbers(14, like="observation.states.joint.position"),
        "actions.effector.position": Numbers(2, 0, 1, kind="switch"),
        "actions.head.position": Numbers(2, like="observation.states.head.position"),
        "actions.waist.position": Numbers(2, like="observation.states.waist.position"),
        "actions.robot.velocity": Numbers(2)}, version="v2.1", episodes=2),
    "aloha": Miniature("lerobot", 50.0, {
        **_cameras("cam_high", "cam_left_wrist", "cam_right_wrist"), "observation.state": Numbers(14),
        "action": Numbers(14)}, version="v2.1", episodes=2),
    "so101": Miniature("lerobot", 30.0, {
        **_cameras("front", "gripper"), "observation.state": Numbers(6, 0, 90), "action": Numbers(6, 0, 90)},
        version="v3.0", episodes=2),
    "egodex": Miniature("video_files", 30.0, {"image": Picture(270, 480)}, episodes=2),
    "clips": Miniature("video_files", 15.0, {"image": Picture(180, 320)}, episodes=2),
}
