"""Which recordings of a dataset a run reads, and at which of their steps windows may begin.

    successful    only what the dataset calls a success
    described     only recordings with an instruction
    where         only recordings whose metadata hold these values; texts are patterns, as {"file_path": "*/success/*"};
                  of a list, there or here, as {"tasks": "*left"} and {"robot": ["a", "b"]}, one value must fit
    keep          a file of the steps at which windows may begin, against idle stretches (a window may reach past them):
                  *.json   {name: [[first, end], ...]}, as published for DROID; what it does not name is left out
                  *.jsonl  {"episode_index": name, "step_indices": [...]}: these steps are left out, as in GEAR's
                           step_filter.jsonl
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from data_pipelines.storage import files
from world_model import kinds

_STEP = kinds.whole(-2**31)
_KEPT = kinds.map_of(kinds.list_of(kinds.row(_STEP, _STEP)))
_LEFT_OUT = kinds.fields({"step_indices": kinds.list_of(_STEP)}, required=("episode_index", "step_indices"))


@dataclasses.dataclass(frozen=True)
class Filters:
    """What is chosen of a dataset; the module's docstring says what each field means."""

    successful: bool = False
    described: bool = False
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keep: str = ""

    def stretches(self, lengths: np.ndarray, chosen: np.ndarray, names: Iterable[str]) -> np.ndarray:
        """What `Source.stretches` returns for those episodes that are chosen.

        lengths: int64 [episodes]; chosen: bool [episodes]; names: the episodes' names in the keep file.
        """
        chosen = chosen & (lengths > 0)
        if not self.keep:
            episodes = np.flatnonzero(chosen)
            return np.stack([episodes, np.zeros_like(episodes), lengths[episodes]], 1)
        ranges = read_keep(self.keep)
        rows, any_named = [], False
        for episode, name in enumerate(names):
            found = ranges.of(name, int(lengths[episode]))
            any_named |= name in ranges.named
            if chosen[episode]:
                rows += [(episode, first, end) for first, end in found]
        if not any_named:
            raise ValueError(f"{self.keep} names none of the {len(lengths)} episodes; it names "
                             f"{sorted(ranges.named)[:3]}")
        return np.array(rows, np.int64).reshape(-1, 3)


EVERYTHING = Filters()


def matches(found, wanted) -> bool:
    """Whether a value of the metadata is the wanted one, or one of several; of a list of values, one must be. A wanted
    text is a pattern of the shell's kind."""
    if isinstance(wanted, (list, tuple)):
        return any(matches(found, each) for each in wanted)
    if isinstance(found, (list, tuple)):
        return any(matches(each, wanted) for each in found)
    if isinstance(wanted, str):
        return isinstance(found, str) and fnmatch.fnmatchcase(found, wanted)
    return bool(found == wanted)


@dataclasses.dataclass(frozen=True)
class Keep:
    """The content of a keep file: for each named episode its ranges, or the steps that are left out."""

    file: str
    named: dict[str, list]
    excludes: bool  # True where `named` holds the steps that are left out instead of ranges

    def of(self, name: str, length: int) -> list[tuple[int, int]]:
        """The ranges (first, end) of an episode of `length` steps, ascending. Raises ValueError where they do not lie
        inside."""
        if self.excludes:
            ranges = self._remaining(name, length)
        else:
            ranges = sorted((first, end) for first, end in self.named.get(name, ()))
        if length == 1:  # an unreadable recording counts as one step, to be drawn and reported
            return [(0, 1)] if ranges else []
        for (first, end), before in zip(ranges, [0, *(end for _, end in ranges)]):
            if not before <= first < end <= length:
                raise ValueError(f"{self.file}: episode {name!r}: range {first} to {end} after step {before}; its "
                                 f"{length} steps need ranges in order inside. The file belongs to another version")
        return ranges

    def _remaining(self, name: str, length: int) -> list[tuple[int, int]]:
        """The ranges between the steps that are left out."""
        kept = np.ones(length + 2, np.bool_)
        kept[[0, -1]] = False
        kept[1 + self._excluded(name, length)] = False
        edges = np.flatnonzero(np.diff(kept)).tolist()
        return list(zip(edges[::2], edges[1::2]))

    def _excluded(self, name: str, length: int) -> np.ndarray:
        steps = np.array(self.named.get(name, ()), np.int64)
        if length > 1 and len(steps) and not (steps.min() >= 0 and steps.max() < length):
            raise ValueError(f"{self.file}: episode {name!r}: step {steps.max()} of {length}. The file belongs to "
                             "another version")
        return steps[steps < length]


def read_keep(file: str) -> Keep:
    """Reads a keep file. Raises OSError where there is none, ValueError where it makes no sense."""
    if file.endswith(".jsonl"):
        return Keep(file, {str(line["episode_index"]): line["step_indices"]
                           for line in files.read_json_lines(file, _LEFT_OUT)}, True)
    return Keep(file, files.read_json(file, _KEPT), False)
