"""Runs of a sweep: what is left of each, done one after the other; what failed is told, and the others go on."""

import dataclasses
import shlex
from pathlib import Path

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

    def left(self, file: str) -> list[tuple[list[str], Measurement | None]]:
        """The commands that are still to be run, and what each measures: training, then what is measured."""
        missing = [(m.command(self.workdir), m) for m in self.measured if not self.is_whole(m)]
        checkpoints, steps = self.workdir / "checkpoints", self.config["train"]["steps"]
        if not missing or (checkpoints.is_dir() and steps in checkpoint.steps(checkpoints)):
            return missing
        overrides = self.overrides | {"seed": self.seed}
        return [(submit.training_command(file, overrides, str(self.workdir))[2:], None), *missing]

    def finish(self, file: str) -> str | None:
        """Runs what is left. Returns None, or the last words of a command that failed."""
        for command, measurement in self.left(file):
            print("  python -m", shlex.join(command), flush=True)
            if problem := child.run(command):
                return problem
            if measurement:
                known = self.measurements() | {measurement.file: self.hash_of(measurement)}
                files.write_json(str(self.workdir / MEASURED), known)
        return None


def run(file: str, runs: list[Run], checked: dict[str, dict], dry_run: bool) -> list[dict]:
    """Runs what is not whole; a run that fails does not keep the others from theirs. Returns the table's rows."""
    finished: dict[str, list[Path]] = {}
    failed: dict[str, list[str]] = {}
    for each in runs:
        left = each.left(file)
        print(f"{each.name}, seed {each.seed}: {'to run' if left else 'whole'}, {each.workdir}", flush=True)
        if left and dry_run:
            print("".join(f"  python -m {shlex.join(command)}\n" for command, _ in left), end="", flush=True)
        elif problem := each.finish(file):
            failed.setdefault(each.name, []).append(f"seed {each.seed}: {problem}")
        else:
            finished.setdefault(each.name, []).append(each.workdir)
    return comparison.results(checked, {each.name: each.measured for each in runs}, finished, failed)
