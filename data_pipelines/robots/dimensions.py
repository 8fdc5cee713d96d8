"""Declares a robot's dimensions by groups: their numbered names, slots and limits."""

import dataclasses
from typing import Any

from data_pipelines.robots.embodiment import Dimension
from data_pipelines.robots.slots import ACTION_SLOTS, STATE_SLOTS

XYZ_RPY = ("x", "y", "z", "roll", "pitch", "yaw")
OPENING = (0, 1, None)  # limits of a gripper from 0 to 1; no source says how fast
TWO_GRIPPERS = {"left_gripper": OPENING, "right_gripper": OPENING}
TWO_ARMS = {"left_joint": ("left_arm", 6), "left_gripper": ("left_gripper", 1),
            "right_joint": ("right_arm", 6), "right_gripper": ("right_gripper", 1)}  # groups of `numbered`

Limits = dict[str, tuple]  # group -> (low, high, max_speed), each a number, None or one per member of the group


def numbered(slots: dict[str, range], relative: tuple[str, ...] = (), **groups: tuple) -> tuple[Dimension, ...]:
    """The dimensions name_0, name_1, ... of each group name=(range of slots, count[, first of the range]), in order.
    The groups in `relative` are relative to the state dimensions of the same names."""
    found = []
    for group, (place, count, *first) in groups.items():
        taken = slots[place][first[0] if first else 0:]
        for i in range(count):
            name = group if count == 1 else f"{group}_{i}"
            found.append(Dimension(name, taken[i], relative_to=name if group in relative else None))
    return tuple(found)


def with_limits(limits: Limits, dims: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    """The dimensions, those in the groups of `limits` with these."""
    return tuple(dataclasses.replace(dim, **_limits_of(limits, dim.name)) for dim in dims)


def targets(relative: tuple[str, ...], limits: Limits, **groups: tuple) -> dict[str, Any]:
    """The fields state and action of a robot whose actions are targets of its state, in the same groups."""
    action = with_limits(limits, numbered(ACTION_SLOTS, relative, **groups))
    return {"state": numbered(STATE_SLOTS, **groups),
            "action": tuple(dataclasses.replace(dim, moves=dim.name) for dim in action)}


def _limits_of(limits: Limits, name: str) -> dict[str, Any]:
    group, _, number = name.rpartition("_") if name not in limits else (name, "", "0")
    each = (value[int(number)] if isinstance(value, tuple) else value for value in limits.get(group, ()))
    return dict(zip(("low", "high", "max_speed"), each))
