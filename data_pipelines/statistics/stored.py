"""Statistics as data: their schema, file and hash.

Per dataset, or per robot where several datasets share one:
    {"dataset", "embodiment", "actions_per_block", "episodes", "skipped": {"dataset/episode": reason},
     "state" | "action" | "absolute_action": `Summary.result`, or None where there is none}
Each value is a list over the embodiment's dimensions, in robot units. Actions are relative where they are declared so;
of a robot that is declared per_step, each value is a list of such lists, one for each step of a block. In both cases
absolute_action is there for people to read.
"""

import hashlib
import json

from data_pipelines.robots.embodiments import name_in_files
from data_pipelines.storage import files
from world_model import kinds

_NUMBERS = kinds.list_of(kinds.number())
_PART, _STEPS = (kinds.optional(kinds.fields(dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), each)))
                 for each in (_NUMBERS, kinds.either(_NUMBERS, kinds.list_of(_NUMBERS))))
STATISTICS = kinds.map_of(kinds.fields(
    {"dataset": kinds.text, "embodiment": kinds.text, "actions_per_block": kinds.whole(),
     "episodes": kinds.optional(kinds.whole()),
     "skipped": kinds.map_of(kinds.text), "state": _PART, "action": _STEPS, "absolute_action": _PART},
    required=("embodiment", "actions_per_block")))  # {dataset: statistics}


def statistics_hash(statistics: dict) -> str:
    """A hash of one dataset's statistics, or of {dataset: statistics}; stable over processes, machines and the renaming
    of robots."""
    return hashlib.sha256(json.dumps(_with_names_in_files(statistics), sort_keys=True).encode()).hexdigest()[:16]


def _with_names_in_files(statistics: dict) -> dict:
    """The statistics of one dataset or several with robots by their oldest names."""
    if isinstance(robot := statistics.get("embodiment"), str):
        return statistics | {"embodiment": name_in_files(robot)}
    return {name: _with_names_in_files(value) if isinstance(value, dict) else value
            for name, value in statistics.items()}


def save_statistics(statistics: dict[str, dict], path: str) -> None:
    """Writes {dataset: statistics} as JSON; path: a file or its address."""
    files.write_json(path, statistics)


def load_statistics(path: str) -> dict[str, dict]:
    """Reads what `save_statistics` wrote. Raises ValueError naming what in it is something else."""
    return files.read_json(path, STATISTICS)
