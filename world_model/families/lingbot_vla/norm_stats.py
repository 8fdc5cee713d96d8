"""Normalisation in the released form: {"norm_stats": {"action.GROUP": {"mean", "std", "q01", ...}}, "count"}, a list
over the dimensions of each group of joints, state likewise under "observation.state.GROUP".

A run's arguments list the groups with the room that each takes: groups stand one after another in the slots, each
padded at its end. So a robot's groups are its dimensions by name (joint_0, joint_1, ... are one group), and the room of
one is what lies before the next.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

KEYS = {"action": "action.", "state": "observation.state."}
STATISTICS = ("mean", "std", "q01", "q99", "min", "max")
NORM_TYPES = {"quantile": {1: "bounds_99", 2: "bounds_99_woclip"}, "min_max": {1: "minmax", 2: "minmax_woclip"}}


def groups(dimensions: tuple) -> dict[str, list[int]]:
    """{group: indices of dimensions}, in their order."""
    keyed = itertools.groupby(enumerate(dimensions), key=lambda pair: re.sub(r"_\d+$", "", pair[1].name))
    return {name: [i for i, _ in found] for name, found in keyed}


def published(robot, statistics: Mapping) -> dict:
    """One dataset's statistics in the released form; robot: data_pipelines.robots.embodiment.Embodiment."""
    found = {prefix + name: {key: [statistics[part][key][i] for i in at] for key in STATISTICS}
             for part, prefix in KEYS.items() for name, at in groups(getattr(robot, part)).items()}
    return {"norm_stats": found, "count": statistics["action"]["count"]}


def arguments(robot, version: int) -> dict:
    """The data section's entries of a robot: its groups with their room, its cameras, how it is normalised."""
    slots = {name: [robot.action[i].slot for i in at] for name, at in groups(robot.action).items()}
    order = sorted(slots, key=lambda name: slots[name][0])
    ends = [slots[name][0] for name in order[1:]] + [max(slots[order[-1]]) + 1]
    joints = {name: end - slots[name][0] for name, end in zip(order, ends, strict=True)}
    norm_type: Any = NORM_TYPES[robot.normalisation][version]
    if version == 2:
        norm_type = [str({name: norm_type}) for name in joints]
    return {"joints": [str({name: room}) for name, room in joints.items()], "cameras": list(robot.views),
            "norm_type": norm_type}
