"""The ledger of a run's time over restarts, and the watchdog."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import goodput
from launch.watchdog import KNOWN_AFTER, Watchdog


class Clock:
    """A wall clock that moves when told."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


def test_every_second_since_the_start_is_in_one_phase_over_a_kill_and_a_restart(tmp_path):
    path, clock = tmp_path / "goodput.jsonl", Clock()
    first = goodput.Ledger(path, 0, began=clock.now, now=clock)
    for phase, step, seconds, waited in [("startup", 0, 5, 0), ("compile", 0, 10, 0), ("steps", 4, 40, 0.25),
                                         ("checkpoint", 4, 2, 0), ("steps", 6, 20, 0)]:
        clock.now += seconds
        first.ends(phase, step, waited)
    with path.open("a") as file:
        file.write('{"attempt": 1000.0, "ste')  # killed at step 6, in the middle of a line
    clock.now += 100  # nobody starts it
    second = goodput.Ledger(path, 4, began=clock.now, now=clock)
    for phase, step, seconds in [("startup", 4, 3), ("compile", 4, 7), ("steps", 8, 40)]:
        clock.now += seconds
        second.ends(phase, step)
    attempts = goodput.read(path)
    assert goodput.account(attempts) == {"startup": 8, "compile": 17, "steps": 30 + 40, "data_wait": 10,
                                         "checkpoint": 2, "lost": 20, "down": 100}
    assert sum(goodput.account(attempts).values()) == clock.now - 1000
    assert goodput.describe(attempts).startswith("goodput 30.8% of 227 s in 2 attempts; the rest: startup 3.5%")


def test_the_command_prints_it_and_asks_for_a_workdir(tmp_path):
    goodput.Ledger(tmp_path / "goodput.jsonl", 0, began=time.time() - 10).ends("steps", 3)
    run = lambda *args: subprocess.run([sys.executable, "-m", "launch.goodput", *args], capture_output=True, text=True,
                                       cwd=Path(__file__).parents[1], check=False)
    assert "goodput 100.0% of 10 s in 1 attempt" in run(tmp_path).stdout
    assert "python -m launch.goodput WORKDIR" in run(tmp_path / "nowhere").stderr


@pytest.mark.parametrize("times, written", [(3.0, True), (0.0, False)])
def test_a_step_far_over_the_median_leaves_the_stacks_of_all_threads(tmp_path, capsys, times, written):
    path = tmp_path / "stacks.txt"
    with Watchdog(path, times, least_seconds=0.2) as watchdog:
        assert watchdog.limit() == float("inf")  # compilation takes what it takes
        for _ in range(KNOWN_AFTER):
            watchdog.step()
        end = time.monotonic() + (60 if written else 1)
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
    assert path.exists() == written
    if written:
        assert path.read_text().count("a step has taken") == 1  # once for one step
        assert "test_goodput.py" in path.read_text()
        assert "stacks of all threads in" in capsys.readouterr().err
