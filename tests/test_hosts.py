"""Several processes as one run: the same losses, agreement, preemption, death of one, another number of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch.supervision import hosts
from tests import tiny_training as tiny
from world_model.training import checkpoint

STEPS, EVERY = 8, 4
SMALL = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu", "PYTHONPATH": "."}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(workdir, count, *options, each=lambda index: ()):
    """`count` processes of one run; each(index): more options of one of them."""
    def process(index):
        joined = {} if count == 1 else {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                                        "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        return subprocess.Popen(
            [sys.executable, "tests/tiny_training.py", f"--workdir={workdir}", f"--steps={STEPS}", f"--every={EVERY}",
             *options, *each(index)],
            cwd=Path(__file__).parents[1], env=os.environ | SMALL | joined, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    port = free_port()
    return [process(index) for index in range(count)]


def finish(processes, seconds=300):
    """[(exit code, stdout, stderr)]; a process that does not end by itself fails the test."""
    try:
        out = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, out, strict=True)]


def wait_for_step(workdir, step, processes):
    """Until some process has asked for the batch of `step`."""
    batches, end = workdir / "batches.txt", time.monotonic() + 300
    while not (batches.exists() and any(line.startswith(f"{step} ") for line in batches.read_text().splitlines())):
        assert time.monotonic() < end and all(p.poll() is None for p in processes), "the run did not get there"
        time.sleep(0.05)


def losses(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records}


def assert_same_losses(workdir, other):
    mine, theirs = losses(workdir), losses(other)
    assert mine.keys() == theirs.keys()
    np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in one process."""
    workdir = tmp_path_factory.mktemp("alone")
    (code, _out, err), = finish(start(workdir, 1))
    assert code == 0, err
    return workdir


def test_sigterm_on_one_of_four_saves_all_and_two_go_on_to_the_same_losses(alone, tmp_path):
    four = start(tmp_path, 4, "--slow=0.3")
    wait_for_step(tmp_path, 2, four)
    four[1].send_signal(signal.SIGTERM)
    for code, _out, err in finish(four):
        assert code == 143, err
    there = checkpoint.steps(tmp_path / "checkpoints")
    assert there and there[-1] < STEPS
    wrote = {path.name for path in (tmp_path / "checkpoints" / str(there[-1]) / "state").glob("ocdbt.process_*")}
    assert wrote == {f"ocdbt.process_{index}" for index in range(4)}
    for code, _out, err in finish(start(tmp_path, 2)):
        assert code == 0, err
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == STEPS
    assert_same_losses(tmp_path, alone)
    used = {tuple(map(int, line.split()[:2])) for line in (tmp_path / "batches.txt").read_text().splitlines()}
    for step in range(STEPS):  # every host its own rows, and together all of them
        rows = 2 if step < there[-1] else 4
        assert {(step, step * 1000 + first) for first in range(0, 8, rows)} <= used


def test_the_death_of_one_ends_the_other_and_a_restart_loses_nothing(alone, tmp_path):
    two = start(tmp_path, 2, "--slow=0.5", "--heartbeat_seconds=20")
    wait_for_step(tmp_path, EVERY + 2, two)  # a checkpoint is there
    two[1].kill()
    died = time.monotonic()
    (code, _, err), _ = finish(two, 150)
    assert code != 0 and time.monotonic() - died < 150
    assert "error: host 0 of 2 lost another one" in err or "heartbeat" in err.lower(), err[-2000:]
    for code, _out, err in finish(start(tmp_path, 2)):
        assert code == 0, err
    assert_same_losses(tmp_path, alone)


def test_hosts_that_differ_all_stop_with_the_difference(tmp_path):
    for code, _out, err in finish(start(tmp_path, 2, each=lambda index: (f"--seed={index}",))):
        assert code == 1
        assert "hosts differ: config.seed is 0 on host 0 and 1 on host 1" in err
    assert not (tmp_path / "checkpoints").exists()


def test_a_coordinator_that_does_not_answer_is_named_in_bounded_time(tmp_path):
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    process = subprocess.run(
        [sys.executable, "tests/tiny_training.py", f"--workdir={tmp_path}", "--connect_seconds=3"], text=True,
        cwd=Path(__file__).parents[1], env=os.environ | SMALL | joined, capture_output=True, timeout=240, check=False)
    assert process.returncode != 0
    assert joined["JAX_COORDINATOR_ADDRESS"] in process.stderr, process.stderr[-2000:]


class Store(dict):
    """The coordinator's key-value store; a key that is not there has been waited for."""

    key_value_set = dict.__setitem__

    def blocking_key_value_get(self, key, milliseconds):
        return self[key]


@pytest.fixture
def as_host(monkeypatch):
    """as_host(index): from now on this process is that one of two hosts."""
    def become(index):
        monkeypatch.setattr(hosts.jax, "process_index", lambda: index)

    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.distributed.global_state, "client", Store())
    return become


@pytest.mark.parametrize("trouble, sentence", [
    (("importlib.metadata.version", lambda name: "0.0.1"),
     r"hosts differ: flax is '\d.+' on host 0 and '0.0.1' on host 1"),
    (("time.time", lambda: time.monotonic() + 1e6), r"the clock of host \d is \d+ s ahead of host \d's: set them")],
    ids=["version", "clock"])
def test_another_version_or_clock_is_found_before_anything_runs(as_host, monkeypatch, trouble, sentence):
    with monkeypatch.context() as patch:
        patch.setattr(*trouble)
        as_host(1)
        with pytest.raises(hosts.HostError, match="host 0 did not say its facts within 7 s"):
            hosts.agree({"seed": 0}, "runs/a", "v1", 7)
    as_host(0)
    with pytest.raises(hosts.HostError, match=sentence):
        hosts.agree({"seed": 0}, "runs/a", "v1", 7)


def test_a_host_that_sees_other_checkpoints_stops_all(as_host):
    as_host(1)
    with pytest.raises(hosts.HostError, match="host 0 did not say its newest checkpoint"):
        hosts.agree_on("newest checkpoint", None, 7)
    as_host(0)
    with pytest.raises(hosts.HostError, match="newest checkpoint is 400 on host 0 and None on host 1; all must see the same"):
        hosts.agree_on("newest checkpoint", 400, 7)


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(hosts.HostError, match="JAX_NUM_PROCESSES set, JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID not"):
        hosts.join(1, 1)
    assert tiny.config().hosts.heartbeat_seconds > 0
