"""Kills a training again and again, at random moments and during saves, and compares it with one that was left alone.

    python -m benchmarks.kill_campaign --kills=100 [--out=DIR] [--seed=0] [-- COMMAND WITH {workdir}]

COMMAND is a training with a {workdir}; by default a toy of the tests', whose every loss is on record. It runs once to
its end. Then it is started in another workdir, killed (kill -9) and started again, until it was killed --kills times:
every other time at a moment between its start and the length of a run, else while a checkpoint is being written.
Wherever it reaches its end, and at last, the campaign fails if a start failed, a half-written save is left, or the last
checkpoint, the history of metrics or the list of checkpoints is not bit for bit that of the run that was left alone.
"""

import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from absl import app, flags

from launch import checkpoint as command
from world_model.training import checkpoint
from world_model.training.records import read_records

KILLS = flags.DEFINE_integer("kills", 100, "how often", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "folder of both workdirs; default: a temporary one")
SEED = flags.DEFINE_integer("seed", 0, "of the moments")
TOY = f"{sys.executable} tests/tiny_training.py --workdir={{workdir}} --steps=40 --every=4"
COMPARED = ("loss", "grad_norm", "learning_rate")  # metrics; the others are speeds


def start(text: str, workdir: Path) -> subprocess.Popen:
    """Starts the training."""
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen(shlex.split(text.format(workdir=workdir)), stdout=log, stderr=log)


def finish(text: str, workdir: Path) -> float:
    """Runs the training to its end; returns its seconds. Raises RuntimeError where it fails."""
    began = time.monotonic()
    if code := start(text, workdir).wait():
        raise RuntimeError(f"{workdir}: exit code {code}; see {workdir}.log")
    return time.monotonic() - began


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((workdir / "checkpoints").glob("*-tmp*"))


def kill_once(text: str, workdir: Path, after: float | None) -> str:
    """Starts the training and kills it after some seconds, or for None during a save; returns what it was doing. Raises
    RuntimeError where it ended by itself, and not by being done."""
    process, began = start(text, workdir), time.monotonic()
    before = newest(workdir)
    while process.poll() is None:
        if saving(workdir) if after is None else time.monotonic() - began > after:
            doing = "saving" if saving(workdir) else "training" if newest(workdir) > before else "starting"
            process.kill()
            process.wait()
            return doing
        time.sleep(0.001)
    if process.returncode:
        raise RuntimeError(f"{workdir}: exit code {process.returncode}; see {workdir}.log")
    return "done"


def newest(workdir: Path) -> int:
    """The newest whole checkpoint's step, 0 without one."""
    there = workdir / "checkpoints"
    return max(checkpoint.steps(there), default=0) if there.is_dir() else 0


def history(workdir: Path) -> list[tuple]:
    """What was measured at every step that counts."""
    return [(record["step"], *(record.get(name) for name in COMPARED))
            for record in read_records(workdir / "metrics.jsonl")]


def differences(workdir: Path, other: Path) -> list[str]:
    """Sentences on how a killed run differs from the one that was left alone."""
    found = command.diff(workdir, other)
    if history(workdir) != history(other):
        found.append("the histories of metrics differ")
    if checkpoint.steps(workdir / "checkpoints") != checkpoint.steps(other / "checkpoints"):
        found.append("the lists of checkpoints differ")
    if saving(workdir):
        found.append("a half-written save is left")
    return found


def campaign(text: str, folder: Path, kills: int, rng: random.Random) -> dict:
    """The whole of it; returns the figures."""
    seconds, done, round_ = finish(text, folder / "alone"), Counter(), 0
    began = time.monotonic()
    while sum(done.values()) < kills:
        workdir = folder / f"killed_{round_}"
        after = rng.uniform(0, seconds) if sum(done.values()) % 2 else None
        doing = kill_once(text, workdir, after)
        if doing == "done":
            seconds *= 0.9  # the machine has become faster than it was at first
        else:
            done[doing] += 1
            print(f"{sum(done.values())} of {kills}: killed while {doing}, at step {newest(workdir)}", flush=True)
        if doing == "done" or sum(done.values()) == kills:
            finish(text, workdir)
            if problems := differences(workdir, folder / "alone"):
                raise RuntimeError("; ".join(problems[:5]))
            round_ += 1
    return {"kills": kills, **done, "runs": round_, "equal": True, "seconds": round(time.monotonic() - began)}


def main(argv: list[str]) -> None:
    """The command."""
    text = shlex.join(argv[1:]) if argv[1:] else TOY
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(OUT.value or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(campaign(text, folder, KILLS.value, random.Random(SEED.value))))


if __name__ == "__main__":
    app.run(main)
