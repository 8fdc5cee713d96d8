"""A study is a sweep whose question is written down before its first run: what is compared, over which seeds, what
counts as an effect, and when the answer is yes or no.

OUT/study.json holds it with a hash of all that it says; a sweep into OUT then runs that study or is refused.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_pipelines.storage import files
from launch.reporting.comparison import Measurement
from launch.reporting.verdicts import RULE
from launch.setup import provenance
from world_model import kinds
from world_model.training.checkpoint import flatten

FILE = "study.json"
FORMAT = 1
BUDGET = {"steps": 0.0, "flops": 0.02}  # what arms have alike, and within which share: families come in whole layers
_STORED = kinds.fields({"hash": kinds.text, "locked": kinds.text, "code": kinds.text, "plan": kinds.MAP},
                       required=("hash", "locked", "code", "plan"))


class StudyError(ValueError):
    """A study that cannot be locked, or is no longer the one that was; says what differs."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What a config file's get_study() says; its values are this class's fields."""

    question: str  # a sentence that is answered by "yes" if the first arm is beaten
    primary: str  # column of the results that decides
    smallest_effect: float  # difference from the first arm, in that column's units, that is worth knowing
    seeds: Sequence[int]  # seeds of every arm; other seeds are pilots, which are never counted
    larger_is_better: bool = True

    def __post_init__(self):
        """Raises StudyError."""
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 3:
            raise StudyError(f"get_study(): seeds = {self.seeds}: expected at least three different ones")
        if not self.smallest_effect > 0:
            raise StudyError(f"get_study(): smallest_effect = {self.smallest_effect}: expected a number above 0")


def read(module: Mapping) -> Study:
    """The study of a config file's namespace. Raises StudyError."""
    if "get_study" not in module:
        raise StudyError("the config file defines no get_study(): question, primary, smallest_effect and seeds")
    try:
        found = Study(**module["get_study"]())
    except TypeError as error:
        raise StudyError(f"get_study(): {error}; its keys are "
                         f"{', '.join(field.name for field in dataclasses.fields(Study))}") from error
    return found


def plan(study: Study, checked: dict[str, dict], measured: dict[str, list[Measurement]]) -> dict:
    """All that the study says, as JSON values. Raises StudyError where its arms are not comparable."""
    columns = {metric for each in measured.values() for m in each for metric in m.metrics}
    if study.primary not in columns:
        raise StudyError(f"get_study(): primary = {study.primary!r} is not measured; there are {sorted(columns)}")
    first, *others = checked
    for arm in others:
        for key, share in BUDGET.items():
            if abs(checked[arm][key] - checked[first][key]) > share * checked[first][key]:
                raise StudyError(f"arm {arm!r} has {checked[arm][key]:,} {key}, {first!r} has {checked[first][key]:,}: "
                                 "a study compares arms of one budget; set train.steps of one of them")
    return kinds.plain(dataclasses.asdict(study) | {
        "seeds": list(study.seeds), "format": FORMAT, "rule": RULE,
        "arms": {name: {key: facts[key] for key in ("config", *BUDGET)} for name, facts in checked.items()},
        "measured": {name: {m.file: {"module": m.module, "options": m.options} for m in each}
                     for name, each in measured.items()}})


def hash_of(plan: dict) -> str:
    """16 hexadecimal digits of what a plan says."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]


def lock(out: Path, plan: dict) -> str:
    """Writes OUT/study.json, before anything has run there. Returns the plan's hash. Raises StudyError."""
    if (out / FILE).exists():
        raise StudyError(f"{out / FILE} is there: a study is locked once; give another --out")
    if runs := sorted(out.glob("*/seed_*")):
        raise StudyError(f"{runs[0]} has been run: a study is locked before its first run; give another --out")
    files.write_json(str(out / FILE), {"hash": hash_of(plan), "plan": plan, "code": provenance.code_version(),
                                       "locked": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")})
    return hash_of(plan)


def locked(out: Path) -> dict | None:
    """What `lock` wrote, or None. Raises StudyError where the file was changed since."""
    if not (path := out / FILE).exists():
        return None
    stored = kinds.read(path, _STORED)
    if hash_of(stored["plan"]) != stored["hash"]:
        raise StudyError(f"{path} was changed after it was locked: its hash is {hash_of(stored['plan'])}, and it says "
                         f"{stored['hash']}")
    return stored


def check_same(stored: dict, plan: dict) -> None:
    """Raises StudyError naming what the config file says now otherwise than the locked plan."""
    if changes := list(_changes(flatten(stored["plan"]), flatten(plan))):
        raise StudyError(f"the study was locked on {stored['locked']} and has changed since: {'; '.join(changes[:4])}. "
                         f"Undo that, run it with the code that locked it ({stored['code']}), or lock another study in "
                         "another --out")


def _changes(then: dict, now: dict) -> Iterator[str]:
    for key in then | now:
        if then.get(key) != now.get(key):
            yield f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
