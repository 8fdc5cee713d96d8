"""The fields of published RLDS datasets; a dataset of another kind names its own in its config entry.

Field names are those of features.json, with "/" between levels; fields of a step stand without "steps/".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Schema:
    """The fields that `RldsSource` reads unless its arguments name others."""

    rate: float | None  # steps per second
    images: Mapping[str, str]  # view of the embodiment -> field of a step
    state: tuple[str, ...]  # fields of a step, joined in order; action likewise
    action: tuple[str, ...]
    instruction: str
    success: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # like `where`; empty: unknown
    name: str = ""  # how keep files name an episode, with {fields} of it; empty: by its number in the split


SCHEMAS = {
    # the convention of RLDS's own tools, with one camera
    "generic": Schema(None, {"image": "observation/image"}, ("observation/state",), ("action",),
                      "language_instruction"),
    # droid 1.0.x, for embodiment "droid": joint positions, and commanded joint positions as actions
    "droid": Schema(
        15.0, {"exterior_1": "observation/exterior_image_1_left", "exterior_2": "observation/exterior_image_2_left",
               "wrist": "observation/wrist_image_left"},
        ("observation/joint_position", "observation/gripper_position"),
        ("action_dict/joint_position", "action_dict/gripper_position"), "language_instruction",
        success={"episode_metadata/file_path": "*success*"},
        name="{episode_metadata/recording_folderpath}--{episode_metadata/file_path}"),
    # bridge_dataset 1.0.0, for embodiment "widowx"; demonstrations, of which none is marked as a failure
    "bridge_v2": Schema(5.0, {"image_0": "observation/image_0"}, ("observation/state",), ("action",),
                        "language_instruction"),
    # fractal20220817_data, for embodiment "google_robot"
    "rt_1": Schema(
        3.0, {"image": "observation/image"}, ("observation/base_pose_tool_reached", "observation/gripper_closed"),
        ("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"),
        "observation/natural_language_instruction", success={"aspects/success": True}),
}


def get_schema(name: str) -> Schema:
    """The schema of that name; that of "" has an instruction and nothing else. Raises ValueError naming what there
    is."""
    if not name:
        return Schema(None, {}, (), (), "language_instruction")
    if name not in SCHEMAS:
        raise ValueError(f"schema = {name!r} is unknown; there are {sorted(SCHEMAS)}")
    return SCHEMAS[name]
