"""The action and state slots that all robots share.

A robot's dimensions are scattered into fixed slots, so that a left arm is in the same place for every robot
and a batch can mix robots. The published DROID order (7 joints, then the gripper) is slots 0 to 7.
"""

import numpy as np

ACTION_SLOTS = {
    "left_arm": range(0, 7),
    "left_gripper": range(7, 8),
    "right_arm": range(8, 15),
    "right_gripper": range(15, 16),
    "hands": range(16, 26),  # fingers beside the two gripper slots
    "torso": range(26, 30),  # head and waist
    "base": range(30, 32),  # linear and angular velocity
}

STATE_SLOTS = {
    "left_arm": range(0, 7),
    "left_gripper": range(7, 8),
    "right_arm": range(8, 15),
    "right_gripper": range(15, 16),
    "hands": range(16, 40),
    "base": range(40, 47),
    "torso": range(47, 51),
    "spare": range(51, 64),
}

# Two arms in 30 slots, for runs with model.action_dim = 30: the order of the code published with arXiv 2601.21998
# (commit 58c2ae5). A pose is x, y, z and a quaternion.
DUAL_ARM_SLOTS = {
    "left_pose": range(0, 7),
    "right_pose": range(7, 14),
    "left_joints": range(14, 21),
    "right_joints": range(21, 28),
    "left_gripper": range(28, 29),
    "right_gripper": range(29, 30),
}

# Where robots fill each group from its first slot on, both arms' joints one behind the other: data configs published
# with arXiv 2601.18692 (commit 61ef6b1; 75 slots, of which two groups are named) and 2607.06403 (commit 36a9bab; 55).
ARM_EFFECTOR_SLOTS = {"arm": range(0, 14), "effector": range(14, 16)}
BODY_SLOTS = {
    "arm": range(0, 14),
    "end": range(14, 28),
    "effector": range(28, 30),
    "waist": range(30, 34),
    "head": range(34, 36),
    "base": range(36, 39),
    "hand": range(39, 51),
    "reserved": range(51, 55),
}


def scatter(values: np.ndarray, slots: np.ndarray, size: int) -> np.ndarray:
    """Puts dimension i of [..., dims] into slot slots[i] of [..., size]; unused slots are zero."""
    out = np.zeros((*values.shape[:-1], size), values.dtype)
    out[..., slots] = values
    return out


def slot_mask(slots: np.ndarray, size: int) -> np.ndarray:
    """True on the slots that a robot uses, bool [size]."""
    mask = np.zeros(size, np.bool_)
    mask[slots] = True
    return mask
