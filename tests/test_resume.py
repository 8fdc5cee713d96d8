"""Killed at any moment, also during a save, and started again: the same bits as a run that was never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import checkpoint as command
from world_model.training import checkpoint

STEPS, EVERY = 12, 3


def start(workdir, cache, *options):
    """A training process on one device; its compiled step comes from `cache` where it can."""
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
              "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0", "XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": "."}
    return subprocess.Popen(
        [sys.executable, "tests/tiny_training.py", f"--workdir={workdir}", f"--steps={STEPS}", f"--every={EVERY}",
         *options], cwd=Path(__file__).parents[1], env=os.environ | cached, stdout=subprocess.PIPE, text=True)


def kill_when(process, condition, seconds=300.0):
    """kill -9 as soon as `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "the moment to kill never came"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def batches(workdir):
    return (workdir / "batches.txt").read_text().splitlines()


def losses(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The run that is never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    out, _ = (process := start(workdir, cache)).communicate()
    assert process.returncode == 0, out
    return workdir


def kill_at_a_random_moment(workdir, cache):
    moment = random.SystemRandom().uniform(0.0, 1.5)
    print(f"killed {moment:.3f} s after the first batch")
    process, begun = start(workdir, cache, "--slow=0.2"), []

    def moment_has_come():
        if not begun and (workdir / "batches.txt").exists():
            begun.append(time.monotonic())
        return begun and time.monotonic() - begun[0] > moment

    kill_when(process, moment_has_come)


def kill_during_a_save(workdir, cache):
    began = time.time()
    def unfinished():
        return any(path.stat().st_mtime > began for path in workdir.glob("checkpoints/*-tmp"))
    kill_when(start(workdir, cache, "--slow_save=1.0"), unfinished)
    assert unfinished()


def test_killed_and_resumed_equals_uninterrupted(whole, cache, tmp_path):
    kill_at_a_random_moment(tmp_path, cache)
    kill_during_a_save(tmp_path, cache)
    there = tmp_path / "checkpoints"
    (last,) = checkpoint.steps(there)[-1:] or [0]
    consumed = batches(tmp_path)

    out, _ = (process := start(tmp_path, cache)).communicate()
    assert process.returncode == 0, out
    assert (f"resuming from step {last} of" in out) == bool(last)
    assert command.diff(tmp_path, whole) == []
    assert command.digest(tmp_path) == command.digest(whole)
    assert checkpoint.steps(there) == checkpoint.steps(whole / "checkpoints")
    assert not list(there.glob("*-tmp"))
    assert batches(tmp_path) == consumed + batches(whole)[last:]
    assert set(consumed) <= set(batches(whole))
    assert losses(tmp_path) == losses(whole)


def test_a_kill_in_the_first_save_of_all_leaves_a_run_that_starts_again(whole, cache, tmp_path):
    kill_during_a_save(tmp_path, cache)
    assert checkpoint.steps(tmp_path / "checkpoints") == []
    out, _ = (process := start(tmp_path, cache)).communicate()
    assert process.returncode == 0 and "resuming" not in out
    assert command.diff(tmp_path, whole) == []
