"""DreamZero's names: the original Wan's and those of the action parts (dreamzero0/dreamzero at ab790c1,
groot/vla/model/dreamzero/modules/wan_video_dit_action_casual_chunk.py): 1317 tensors at 14B, 997 at 5B."""

import dataclasses
import re

from world_model.families.wan.names import WAN, layer_stack

ACTION_MODULES = (  # published, native, kind
    ("state_encoder.layer1", "state_encoder.fc1", "category"),
    ("state_encoder.layer2", "state_encoder.fc2", "category"),
    ("action_encoder.W1", "action_encoder.fc1", "category"),
    ("action_encoder.W2", "action_encoder.fc2", "category"),
    ("action_encoder.W3", "action_encoder.fc3", "category"),
    ("action_decoder.layer1", "action_decoder.fc1", "category"),
    ("action_decoder.layer2", "action_decoder.fc2", "category"),
)
ACTION_PARTS = r"^(state_encoder|action_encoder|action_decoder)\."  # regular expression of native and published names
BESIDE_VIDEO = dataclasses.replace(WAN, modules=ACTION_MODULES, stacks=(layer_stack(()),))  # the image branch too
DREAMZERO = dataclasses.replace(WAN, modules=WAN.modules + ACTION_MODULES)


def is_action_part(name: str) -> bool:
    """Whether a parameter, by its native or published name, is none of the video model's."""
    return bool(re.search(ACTION_PARTS, name))
