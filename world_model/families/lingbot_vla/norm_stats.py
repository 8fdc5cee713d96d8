"""Normalisation in the released form: {"norm_stats": {"action.GROUP": {"mean", "std", "q01", ...}}, "count"}, a list
over the dimensions of each group of joints, state likewise under "observation.state.GROUP".

A run's arguments list the groups with the room that each takes: groups stand one after another in the slots, each
padded at its end. So a robot's groups are its dimensions by name (joint_0, joint_1, ... are one group), and the room of
one is what lies before the next.
"""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path

from world_model.weights.safetensors_io import WeightsError

KEYS = {"action": "action.", "state": "observation.state."}
STATISTICS = ("mean", "std", "q01", "q99", "min", "max")
NORM_TYPES = {"quantile": {1: "bounds_99", 2: "bounds_99_woclip"}, "min_max": {1: "minmax", 2: "minmax_woclip"}}


def groups(dimensions: tuple) -> dict[str, list[int]]:
    """{group: indices of its dimensions}."""
    found: dict[str, list[int]] = {}
    for i, dimension in enumerate(dimensions):
        found.setdefault(re.sub(r"_\d+$", "", dimension.name), []).append(i)
    return found


def published(robot, statistics: Mapping) -> dict:
    """One dataset's statistics in the released form; robot: data_pipelines.robots.embodiment.Embodiment."""
    found = {prefix + name: {key: [statistics[part][key][i] for i in at] for key in STATISTICS}
             for part, prefix in KEYS.items() for name, at in groups(getattr(robot, part)).items()}
    return {"norm_stats": found, "count": statistics["action"]["count"]}


def arguments(robot, version: int) -> dict:
    """The data section's entries of a robot: its groups with their room, its cameras, how it is normalised."""
    joints, norm_type = rooms(robot.action), NORM_TYPES[robot.normalisation][version]
    return {"joints": [str({name: room}) for name, room in joints.items()], "cameras": list(robot.views),
            "norm_type": [str({name: norm_type}) for name in joints] if version == 2 else norm_type}


def rooms(dimensions: tuple) -> dict[str, int]:
    """{group: slots from its first to the next group's}, in the order of slots."""
    slots = {name: [dimensions[i].slot for i in at] for name, at in groups(dimensions).items()}
    order = sorted(slots, key=lambda name: slots[name][0])
    ends = [slots[name][0] for name in order[1:]] + [max(slots[order[-1]]) + 1]
    return {name: end - slots[name][0] for name, end in zip(order, ends, strict=True)}


def read(file: Path, joints: list | None, robot, actions_per_block: int) -> dict:
    """Published statistics as those of a dataset of `robot`, for data_pipelines.statistics.

    joints: `joints` of the run's arguments, which say where each group begins; None: not known.
    Raises WeightsError where groups, their widths or their slots are not the robot's.
    """
    found = json.loads(file.read_text())
    if not isinstance(found, dict) or not isinstance(found.get("norm_stats"), dict):
        raise WeightsError(f"{file}: expected {{'norm_stats': ..., 'count': ...}}")
    values = found["norm_stats"]
    if nested := [name for name, entry in values.items() if isinstance(entry["mean"][0], list)]:
        raise WeightsError(f"{file}: {nested[0]} has statistics for each step of a chunk; one line for all is needed")
    needed = {KEYS[part] + name: len(at) for part in KEYS for name, at in groups(getattr(robot, part)).items()}
    widths = {name: len(entry["mean"]) for name, entry in values.items()}
    if widths != needed:
        raise WeightsError(f"{file}: statistics of another slot table: expected {needed} of robot {robot.name!r}, "
                           f"found {widths}; give that robot's file, or an embodiment with these groups")
    _check_slots(file, joints, robot)

    def part(name: str) -> dict:
        at = groups(getattr(robot, name))
        keys = [key for key in STATISTICS if all(values[KEYS[name] + group].get(key) for group in at)]
        order = sorted((i, group, j) for group, indices in at.items() for j, i in enumerate(indices))
        return {"count": found.get("count"),
                **{key: [values[KEYS[name] + group][key][j] for _, group, j in order] for key in keys}}

    return {"embodiment": robot.name, "actions_per_block": actions_per_block, "episodes": None, "skipped": {},
            "state": part("state"), "action": part("action"), "absolute_action": None}


def _check_slots(file: Path, joints: list | None, robot) -> None:
    start, begins = 0, {}
    for entry in joints or ():
        (name, room), = (ast.literal_eval(entry) if isinstance(entry, str) else entry).items()
        begins[name], start = start, start + room
    for dimensions in (robot.action, robot.state):
        for name, at in groups(dimensions).items():
            slots, first = [dimensions[i].slot for i in at], begins.get(name)
            if first is not None and slots != list(range(first, first + len(slots))):
                raise WeightsError(f"{file}: statistics of another slot table: the run has {name} from slot {first} on "
                                   f"(joints {joints}), robot {robot.name!r} in {slots}")
