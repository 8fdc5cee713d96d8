"""Ledger of a run's time by phase, over all its restarts: WORKDIR/goodput.jsonl, written and read.

The file gets a line at every report of the training loop: the attempt, the step, the wall clock and the attempt's
seconds so far by phase. Steps done past the checkpoint that the next attempt started from are lost work, and the time
between two attempts is down time. Both follow from the lines, so that a killed run need not write anything last.
"""

import json
import time
from pathlib import Path

from world_model import kinds

PHASES = ("startup", "compile", "steps", "data_wait", "evaluate", "checkpoint")
_SECONDS = kinds.fields(dict.fromkeys(PHASES, kinds.number()), required=PHASES[:4])  # the next came later
_LINE = kinds.fields({"attempt": kinds.number(), "time": kinds.number(), "step": kinds.whole(), "seconds": _SECONDS},
                     required=("attempt", "time", "step", "seconds"))


class Ledger:
    """Writer of one attempt's lines. It charges the time since the last call to the phase that ends with it.

    path: the file, or None on all hosts but the first; step: where this attempt starts; began: when it started, in
    seconds since the epoch; cloud: a cloud_ledger.CloudLog that gets the events too.
    """

    def __init__(self, path: Path | None, step: int, began: float, cloud=None, now=time.time):
        self._path, self._cloud, self._now, self._seconds = path, cloud, now, dict.fromkeys(PHASES, 0.0)
        self._began = self._mark = began
        if cloud:
            cloud.begin_attempt(began)
        if path and path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a") as file:
                file.write("\n")  # ends a line that a kill cut short
        self._write(step)

    def end_phase(self, phase: str, step: int, waited: float = 0.0) -> None:
        """Notes that a phase ends after `step`. waited: the share of it that went into waiting for data."""
        before, self._mark = self._mark, self._now()
        self._seconds[phase] += (self._mark - before) * (1 - waited)
        self._seconds["data_wait"] += (self._mark - before) * waited
        if self._cloud:
            self._cloud.end_phase(phase, before, self._mark)
        self._write(step)

    def start_step(self, step: int) -> None:
        """Notes that a step starts; only `cloud` is told."""
        if self._cloud:
            self._cloud.start_step(step, self._now())

    def done(self) -> None:
        """Notes that the last step of the run has been saved; only `cloud` is told."""
        if self._cloud:
            self._cloud.done(self._now())

    def _write(self, step: int) -> None:
        if self._path:
            line = {"attempt": self._began, "time": self._mark, "step": step, "seconds": self._seconds}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def read_attempts(path: Path) -> list[list[dict]]:
    """Reads the lines of each attempt, in order. A line that a kill cut short is left out. Raises ValueError where one
    is of another kind, or none is there."""
    attempts: dict[float, list[dict]] = {}
    for text in path.read_bytes().splitlines():
        try:
            line = kinds.parse(text, kinds.anything, str(path))
        except ValueError:
            continue
        kinds.check(line, _LINE, f"{path}: a line")
        attempts.setdefault(line["attempt"], []).append(line)
    if not attempts:
        raise ValueError(f"{path} holds no line of a run")
    return list(attempts.values())


def account(attempts: list[list[dict]]) -> dict[str, float]:
    """Sums seconds by phase over all attempts, with "lost" steps and "down" time.

    The result adds up to the time since the start.
    """
    total = dict.fromkeys((*PHASES, "lost", "down"), 0.0)
    for lines, following in zip(attempts, [*attempts[1:], None], strict=True):
        for phase in PHASES:
            total[phase] += lines[-1]["seconds"].get(phase, 0.0)
        if following:
            kept = [line for line in lines if line["step"] <= following[0]["step"]]
            lost = lines[-1]["seconds"]["steps"] - (kept[-1]["seconds"]["steps"] if kept else 0.0)
            total["lost"] += lost
            total["steps"] -= lost
            total["down"] += following[0]["time"] - lines[-1]["time"]
    return total


def summarize(attempts: list[list[dict]]) -> str:
    """Formats the account as one line for the person who pays."""
    total = account(attempts)
    whole = sum(total.values())
    parts = (f"{phase.replace('_', ' ')} {seconds / max(whole, 1e-9):.1%}" for phase, seconds in total.items()
             if phase != "steps" and seconds > 0)
    count = f"{len(attempts)} attempt" + "s" * (len(attempts) > 1)
    return (f"goodput {total['steps'] / max(whole, 1e-9):.1%} of {whole:.0f} s in {count}; the rest: "
            f"{', '.join(parts)}")
