"""Runs of a sweep: what is left of them is trained and measured; what failed is told, and the others go on."""

import dataclasses
import itertools
import shlex
from pathlib import Path

import jax
import numpy as np

from data_pipelines.storage import files
from launch import submit
from launch.reporting import comparison
from launch.reporting.comparison import Measurement
from launch.setup import provenance
from launch.supervision import child
from world_model import kinds
from world_model.training import checkpoint

MEASURED = "measured.json"  # in a run's workdir: {file of a measurement: hash of what it depends on}


@dataclasses.dataclass(frozen=True)
class Run:
    """A variant with a seed."""

    name: str
    seed: int
    file: str  # config file, with its arm
    config: dict  # as JSON
    overrides: dict
    workdir: Path
    measured: list[Measurement]

    def difference(self) -> str | None:
        """A sentence where the workdir holds a run of other settings; a key that an older version lacked is none."""
        path = self.workdir / "config.json"
        there = provenance.settings(kinds.read(path, kinds.MAP)) if path.exists() else {}
        for key, value in provenance.settings(self.config).items():
            if key in there and there[key] != value:
                return f"{self.workdir} holds a run with {key} = {there[key]!r}, and this sweep's is {value!r}"
        return None

    def hash_of(self, measurement: Measurement) -> str:
        """What its number depends on."""
        return provenance.config_hash(self.config, measurement.module, measurement.options)

    def measurements(self) -> dict[str, str]:
        """What was measured of it, {file: hash of what the number depends on}."""
        path = self.workdir / MEASURED
        return kinds.read(path, kinds.map_of(kinds.text)) if path.exists() else {}

    def is_whole(self, measurement: Measurement) -> bool:
        """Whether it was measured, of this config and in this way."""
        known = self.measurements().get(measurement.file)
        return known == self.hash_of(measurement) and (self.workdir / measurement.file).exists()

    def values(self, metric: str) -> np.ndarray | None:
        """A column's number of the finished run, or its numbers by starting state; None while there is none."""
        found = next(m for m in self.measured if metric in m.metrics)
        if not self.is_whole(found):
            return None
        value = (found.each.get(metric) or found.metrics[metric])(kinds.read(self.workdir / found.file, found.rule))
        return None if value is None else np.asarray(value, np.float64)

    def missing(self) -> list[tuple[list[str], Measurement]]:
        """The commands that measure what is not yet, and what each measures."""
        return [(m.command(self.workdir), m) for m in self.measured if not self.is_whole(m)]

    def stands_at(self) -> int:
        """Its newest checkpoint's step, or 0."""
        checkpoints = self.workdir / "checkpoints"
        return max(checkpoint.steps(checkpoints), default=0) if checkpoints.is_dir() else 0

    def is_trained(self) -> bool:
        """Whether nothing is left to train."""
        return self.stands_at() >= self.config["train"]["steps"]

    def note(self, measurement: Measurement) -> None:
        """Writes down that it was measured."""
        files.write_json(str(self.workdir / MEASURED),
                         self.measurements() | {measurement.file: self.hash_of(measurement)})


def trainings(runs: list[Run]) -> list[tuple[list[str], list[Run]]]:
    """The commands that train what is left of a variant's runs, and which: those that stand at one step together."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        if run.missing() and not run.is_trained():
            found.setdefault(run.stands_at(), []).append(run)
    return [(training_command(group), group) for group in found.values()]


def training_command(runs: list[Run]) -> list[str]:
    """Trains runs of one variant, at once where they are several."""
    first = runs[0]
    if len(runs) == 1:
        return submit.training_command(first.file, first.overrides | {"seed": first.seed}, str(first.workdir))[2:]
    seeds = ",".join(str(run.seed) for run in runs)
    return [*submit.training_command(first.file, first.overrides, str(first.workdir.parent))[2:], f"--seeds={seeds}"]


def finish(runs: list[Run]) -> dict[int, str]:
    """Trains and measures what is left of a variant's runs. Returns {seed: last words of what failed}."""
    failed: dict[int, str] = {}
    for command, group in trainings(runs):
        for problem in run_commands([command]):
            failed |= {run.seed: problem for run in group if problem and not run.is_trained()}
    left = [(run, *each) for run in runs if run.seed not in failed for each in run.missing()]
    abreast = child.cores() if jax.default_backend() == "cpu" else 1  # a model has an accelerator to itself
    for some in chunked(left, abreast):
        for (run, _, measurement), problem in zip(some, run_commands([command for _, command, _ in some]), strict=True):
            if problem:
                failed.setdefault(run.seed, problem)
            else:
                run.note(measurement)
    return failed


def run_commands(commands: list[list[str]]) -> list[str | None]:
    """Runs commands abreast, each printed."""
    for command in commands:
        print("  python -m", shlex.join(command), flush=True)
    return child.run(commands)


def run(runs: list[Run], checked: dict[str, dict], dry_run: bool, at_once: int = 1) -> list[dict]:
    """Runs what is not whole, `at_once` seeds of a variant together; a run that fails does not keep the others from
    theirs. Returns the table's rows."""
    finished: dict[str, list[Path]] = {}
    failed: dict[str, list[str]] = {}
    for some in group_seeds(runs, at_once):
        for each in some:
            state = "to run" if each.missing() else "whole"
            print(f"{each.name}, seed {each.seed}: {state}, {each.workdir}", flush=True)
        if dry_run:
            left = [command for command, _ in [*trainings(some), *(m for each in some for m in each.missing())]]
            print("".join(f"  python -m {shlex.join(command)}\n" for command in left), end="", flush=True)
        problems = {} if dry_run else finish(some)
        for each in some:
            if problem := problems.get(each.seed):
                failed.setdefault(each.name, []).append(f"seed {each.seed}: {problem}")
            elif not each.missing():
                finished.setdefault(each.name, []).append(each.workdir)
    return comparison.results(checked, {each.name: each.measured for each in runs}, finished, failed)


def group_seeds(runs: list[Run], at_once: int) -> list[list[Run]]:
    """Runs of one variant, `at_once` seeds of every variant before the next."""
    of_variant: dict[str, list[Run]] = {}
    for each in runs:
        of_variant.setdefault(each.name, []).append(each)
    each_in_parts = [chunked(some, at_once) for some in of_variant.values()]
    return [part for same in itertools.zip_longest(*each_in_parts) for part in same if part]


def chunked(values: list, size: int) -> list[list]:
    """Cuts a list into parts of at most so many."""
    return [values[i:i + size] for i in range(0, len(values), size)]
