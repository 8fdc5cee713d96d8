"""Normalisation in the released form: {"norm_stats": {"action.GROUP": {"mean", "std", "q01", ...}}, "count"}, a list
over the dimensions of each group of joints; states likewise under "observation.state.GROUP". Statistics of actions may
be such a list for each step of a chunk, of as many steps as a chunk has or more.

A run's arguments list the groups, each with its room. Groups stand one after another in the slots, and a robot fills
those that it has from their first slot on. A robot is data_pipelines.robots.embodiment.Embodiment.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from world_model import kinds
from world_model.weights.tensor_files import WeightsError, read_json

GroupSlots = Mapping[str, int]  # group -> its slots

_ENTRY = kinds.fields({"mean": kinds.list_of(kinds.anything)}, required=("mean",))
_PUBLISHED = kinds.fields({"norm_stats": kinds.map_of(_ENTRY), "count": kinds.optional(kinds.number(0, 2**62))},
                          required=("norm_stats",))
KEYS = {"action": "action.", "state": "observation.state."}
STATISTICS = ("mean", "std", "q01", "q99", "q02", "q98", "min", "max")
TABLES: dict[int, GroupSlots] = {  # by version
    1: {"arm.position": 14, "effector.position": 2},
    2: {"arm.position": 14, "end.position": 14, "effector.position": 2, "waist.position": 4, "head.position": 2,
        "base.position": 3, "hand.position": 12}}
NORM_TYPES = {  # by version; the first clips nothing
    1: {"bounds_99_unclipped": "bounds_99_woclip", "range_unclipped": "minmax", "mean_std": "meanstd", "std": "std"},
    2: {"bounds_99": "bounds_99", "bounds_99_unclipped": "bounds_99_woclip", "bounds_98": "bounds_98",
        "bounds_98_unclipped": "bounds_98_woclip", "range": "minmax", "range_unclipped": "minmax_woclip",
        "mean_std": "meanstd", "std": "std"}}
NEAREST = {  # likewise, of what a version does not have
    1: {"quantile": "bounds_99_woclip", "bounds_99": "bounds_99_woclip", "bounds_98": "bounds_99_woclip",
        "bounds_98_unclipped": "bounds_99_woclip", "min_max": "minmax", "range": "minmax"},
    2: {"quantile": "bounds_99_woclip", "min_max": "minmax_woclip"}}


def groups(table: GroupSlots, dimensions: tuple) -> dict[str, list[int]] | None:
    """{group: indices of its dimensions, by slot}. None where a slot is in no group, or one in front of it is empty."""
    where, first, found = {dimension.slot: i for i, dimension in enumerate(dimensions)}, 0, {}
    for name, room in table.items():
        filled = [slot for slot in range(first, first + room) if slot in where]
        if filled != list(range(first, first + len(filled))):
            return None
        if filled:
            found[name] = [where[slot] for slot in filled]
        first += room
    return found if sum(map(len, found.values())) == len(dimensions) else None


def table_of(robot, version: int) -> GroupSlots | None:
    """The version's own table where the robot fits into it; else one whose groups are the robot's runs of slots; None
    where state and action do not fill the same, as with states as cosines and sines."""
    if robot.angles:
        return None
    slots = {dimension.slot for dimension in (*robot.action, *robot.state)}
    starts = sorted({0} | {slot for slot in slots if slot - 1 not in slots})
    ends = [*starts[1:], max(slots) + 1]
    own = {f"joints_{start}": end - start for start, end in zip(starts, ends, strict=True)}
    return next((table for table in (TABLES[version], own)
                 if all(groups(table, part) is not None for part in (robot.action, robot.state))), None)


def published(robot, table: GroupSlots, statistics: Mapping) -> dict:
    """One dataset's statistics in the released form; of a robot with statistics per step, for all steps of a chunk."""
    chunk = statistics["actions_per_block"]

    def column(values: list, at: list[int]) -> list:
        rows = np.take(values, at, -1).tolist()
        return rows + rows[-1:] * (chunk - len(rows)) if np.ndim(rows) == 2 else rows  # past the horizon: the last

    found = {prefix + name: {key: column(statistics[part][key], at) for key in STATISTICS if key in statistics[part]}
             for part, prefix in KEYS.items() for name, at in groups(table, getattr(robot, part)).items()}
    return {"norm_stats": found, "count": statistics["action"]["count"]}


def arguments(robot, table: GroupSlots, version: int) -> dict:
    """The data section's entries of a robot: its groups with their room, its cameras, how it is normalised."""
    norm_type = (NORM_TYPES[version] | NEAREST[version])[robot.normalisation]
    return {"joints": [str({name: room}) for name, room in table.items()], "cameras": list(robot.views),
            "norm_type": [str({name: norm_type}) for name in table] if version == 2 else norm_type}


def deviations(dataset: str, robot, version: int) -> list[str]:
    """What the released servers would do otherwise with a robot, in sentences."""
    found = []
    if table_of(robot, version) is None:
        found.append(f"{robot.name}: its server wants state and action in the same slots; there are no statistics of "
                     f"dataset {dataset!r} for it")
    if kind := NEAREST[version].get(robot.normalisation):
        found.append(f"{robot.name}: its server has no {robot.normalisation} and normalises by {kind}, the nearest, "
                     "which does not clip")
    return found


def read(file: Path, joints: list | None, version: int, robot, actions_per_block: int) -> dict:
    """Published statistics as those of a dataset of `robot`, for data_pipelines.statistics.

    joints: `joints` of the run's arguments, where they are known; None: the version's own table.
    Raises WeightsError where groups, their widths, steps or slots are not the robot's.
    """
    found = read_json(file, _PUBLISHED)
    table = _table(joints, f"{file} goes with data.joints, which") if joints else TABLES[version]
    steps = robot.learned_steps(actions_per_block) if robot.per_step else None
    lines = {name: _lines(entry, steps if name.startswith(KEYS["action"]) else None, f"{file}: norm_stats: {name}")
             for name, entry in found["norm_stats"].items()}
    parts, needed = {}, {}
    for part, prefix in KEYS.items():
        dimensions = getattr(robot, part)
        at = groups(table, dimensions)
        if at is None:
            raise WeightsError(f"{file}: statistics of another slot table: they go with {dict(table)}, robot "
                               f"{robot.name!r} has its {part} in slots {[d.slot for d in dimensions]}")
        parts[part] = sorted((i, prefix + name, j) for name, indices in at.items() for j, i in enumerate(indices))
        needed |= {prefix + name: len(indices) for name, indices in at.items()}
    if (widths := {name: each["mean"].shape[-1] for name, each in lines.items()}) != needed:
        raise WeightsError(f"{file}: statistics of another robot: expected {needed} of {robot.name!r}, found {widths}")
    known = [key for key in STATISTICS if all(each[key].size for each in lines.values())]
    return {"embodiment": robot.name, "actions_per_block": actions_per_block, "episodes": None, "skipped": {},
            "absolute_action": None,
            **{part: {"count": found.get("count"),
                      **{key: np.stack([lines[name][key][..., j] for _, name, j in order], -1).tolist()
                         for key in known}} for part, order in parts.items()}}


def _table(joints: list, where: str) -> GroupSlots:
    """The groups of a run's arguments, where each is {group: room}, or that as a string. Raises WeightsError."""
    try:
        entries = [ast.literal_eval(entry) if isinstance(entry, str) else entry for entry in joints]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise WeightsError(f"{where} cannot be read: {error!r}") from error
    if problem := kinds.list_of(kinds.map_of(kinds.whole(1, 2**12)))(entries):
        raise WeightsError(f"{where} is no list of groups: {problem}")
    return {name: room for entry in entries for name, room in entry.items()}


def _lines(entry: dict, steps: int | None, where: str) -> dict[str, np.ndarray]:
    """A group's statistics, float64 [dims], or [steps, dims] where `steps` of them are wanted: of a longer chunk the
    first, and one line for all steps stands for each. What is not there has no numbers.

    Raises WeightsError where there are statistics per step and none are wanted, or too few of them.
    """
    lines = {key: _numbers(entry, key, where) for key in STATISTICS}
    mean = lines["mean"]
    for key, x in lines.items():
        if x.size and x.shape != mean.shape:
            expected, shape = (" x ".join(map(str, each.shape)) for each in (mean, x))
            raise WeightsError(f"{where}: {key}: expected {expected} numbers, found {shape}")
    if mean.ndim == 1:
        return lines if steps is None else {key: np.tile(x, (steps, 1)) for key, x in lines.items()}
    if steps is None:
        raise WeightsError(f"{where} has statistics for each step of a chunk; one line for all is needed, or, of "
                           "actions, a robot that is declared per_step=True")
    if len(mean) < steps:
        raise WeightsError(f"{where} has statistics for {len(mean)} steps of a chunk; the robot executes {steps}")
    return {key: x[:steps] for key, x in lines.items()}


def _numbers(entry: dict, key: str, where: str) -> np.ndarray:
    """One statistic of a group, float64 [dims] or [steps, dims]. Raises WeightsError where it is none."""
    values, row = entry.get(key) or [], kinds.list_of(kinds.number())
    nested = isinstance(values, list) and any(isinstance(each, list) for each in values)
    if problem := (kinds.list_of(row) if nested else row)(values):
        raise WeightsError(f"{where}: {key}{problem}")
    if nested and len(widths := {len(step) for step in values}) > 1:
        raise WeightsError(f"{where}: {key}: steps have different numbers of dimensions: {sorted(widths)}")
    return np.asarray(values, np.float64)
