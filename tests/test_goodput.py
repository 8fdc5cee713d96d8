"""The ledger of a run's time over restarts, and the watchdog."""

import datetime
import json
import logging
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest

from launch.supervision import cloud_ledger
from launch.supervision.ledger import Ledger, account, read_attempts, summarize
from launch.supervision.watchdog import KNOWN_AFTER, Watchdog


class Clock:
    """A wall clock that moves when told."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


def test_every_second_since_the_start_is_in_one_phase_over_a_kill_and_a_restart(tmp_path):
    path, clock = tmp_path / "goodput.jsonl", Clock()
    first = Ledger(path, 0, began=clock.now, now=clock)
    for phase, step, seconds, waited in [("startup", 0, 5, 0), ("compile", 0, 10, 0), ("steps", 4, 40, 0.25),
                                         ("checkpoint", 4, 2, 0), ("steps", 6, 20, 0)]:
        clock.now += seconds
        first.end_phase(phase, step, waited)
    with path.open("a") as file:
        file.write('{"attempt": 1000.0, "ste')  # killed at step 6, in the middle of a line
    clock.now += 100  # nobody starts it
    second = Ledger(path, 4, began=clock.now, now=clock)
    for phase, step, seconds in [("startup", 4, 3), ("compile", 4, 7), ("steps", 8, 40)]:
        clock.now += seconds
        second.end_phase(phase, step)
    attempts = read_attempts(path)
    assert account(attempts) == {"startup": 8, "compile": 17, "steps": 30 + 40, "data_wait": 10, "checkpoint": 2, "evaluate": 0,
                                 "lost": 20, "down": 100}
    assert sum(account(attempts).values()) == clock.now - 1000
    assert summarize(attempts).startswith("goodput 30.8% of 227 s in 2 attempts; the rest: startup 3.5%")


def test_the_command_prints_it_and_asks_for_a_workdir(tmp_path):
    Ledger(tmp_path / "goodput.jsonl", 0, began=time.time() - 10).end_phase("steps", 3)
    def run(*args):
        return subprocess.run([sys.executable, "-m", "launch.goodput", *args], capture_output=True, text=True,
                                           cwd=Path(__file__).parents[1], check=False)
    assert "goodput 100.0% of 10 s in 1 attempt" in run(tmp_path).stdout
    assert "python -m launch.goodput WORKDIR" in run().stderr
    assert f"{tmp_path}/nowhere/goodput.jsonl" in run(tmp_path / "nowhere").stderr


class CloudEntries(logging.Handler):
    """In place of Google's client and of its handler: what was logged, as JSON carries it."""

    entries: ClassVar[list] = []  # of one service, over all processes

    def __init__(self, *_, **__):
        super().__init__()
        self.project = "project"

    def emit(self, record):
        self.entries.append(types.SimpleNamespace(
            payload=json.loads(json.dumps(record.msg)), timestamp=datetime.datetime.now(datetime.UTC),
            insert_id=str(len(self.entries))))

    def logger(self, name):
        return types.SimpleNamespace(list_entries=lambda **_: self.entries)


class NoCredentials(Exception):
    """google.auth.exceptions.GoogleAuthError."""


@pytest.fixture
def google(monkeypatch):
    """Google's client libraries, of which only the log is real enough to be used."""
    names = ["google.api_core", "google.auth", "google.auth.exceptions", "google.cloud.logging",
             "google.cloud.logging_v2", "google.cloud.logging_v2.handlers",
             "google.cloud.logging_v2.handlers.transports", "google.cloud.monitoring_v3", "google.cloud.storage"]
    modules = {name: mock.MagicMock() for name in names}
    modules["google.cloud.logging"].Client = CloudEntries
    modules["google.auth.exceptions"].GoogleAuthError = NoCredentials
    modules["google.cloud.logging_v2.handlers"].CloudLoggingHandler = CloudEntries
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("google.cloud.logging", modules["google.cloud.logging"], raising=False)
    monkeypatch.setattr(CloudEntries, "entries", [])
    yield
    for name in [name for name in sys.modules if name.startswith("ml_goodput_measurement")]:
        del sys.modules[name]  # it holds on to what stood in


def test_googles_calculator_finds_the_same_time_in_the_ledgers_events(google, tmp_path):
    clock, lines = Clock(), tmp_path / "goodput.jsonl"

    def attempt(first, last, save_at):
        ledger = Ledger(lines, first - 1, clock.now, cloud_ledger.open_log("log", "job"), now=clock)
        for phase, seconds in [("startup", 5), ("compile", 15)]:
            clock.now += seconds
            ledger.end_phase(phase, first - 1)
        for step in range(first, last + 1):
            ledger.start_step(step)
            clock.now += 10
            ledger.end_phase("steps", step)
            if step == save_at:
                clock.now += 2
                ledger.end_phase("checkpoint", step)
        return ledger

    attempt(1, 6, save_at=4)  # killed, and started again after 100 s from the checkpoint
    clock.now += 100
    attempt(5, 8, save_at=8).done()
    from ml_goodput_measurement.src.goodput import BadputType, GoodputCalculator
    calculator = GoodputCalculator("job", "log", cache_dir=str(tmp_path))
    percent, badput, last_step = calculator.get_job_goodput(include_badput_breakdown=True)
    mine, whole = account(read_attempts(lines)), clock.now - 1000
    assert last_step == 8 and mine["steps"] == 80
    assert percent * whole / 100 == pytest.approx(mine["steps"] + 2)  # it counts the save after the last step as a step
    assert badput[BadputType.TRAINING_PREP] * whole / 100 == pytest.approx(mine["startup"] + mine["compile"])
    assert badput[BadputType.CUSTOM_BADPUT_EVENTS] == {"CHECKPOINT": pytest.approx(100 * 2 / whole)}
    assert badput[BadputType.INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION] * whole / 100 == pytest.approx(
        mine["down"] + 10)  # from the start of the last step before the kill
    assert badput[BadputType.WASTED_PROGRESS_FROM_DISRUPTION] * whole / 100 == pytest.approx(mine["lost"] - 10)


def test_googles_log_is_off_by_default_and_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.logging", None)  # as pip leaves it with --no-deps
    assert cloud_ledger.open_log("", "job") is None
    with pytest.raises(ValueError, match="log.cloud_goodput = 'log' needs the extra `goodput`"):
        cloud_ledger.open_log("log", "job")


@pytest.mark.parametrize("error", [NoCredentials("Your default credentials were not found."), OSError("no project")])
def test_credentials_that_are_missing_are_asked_for(error, google, monkeypatch):
    monkeypatch.setattr(sys.modules["google.cloud.logging"], "Client", mock.Mock(side_effect=error))
    with pytest.raises(ValueError, match=rf"log.cloud_goodput = 'log': .*{error}.*gcloud auth application-default login"):
        cloud_ledger.open_log("log", "job")


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


def test_a_step_may_end_while_the_watchdog_says_the_median(tmp_path, capsys, monkeypatch):
    """The loop's thread appends: a deque that is walked meanwhile raises, and would end the watchdog."""
    watchdog, median = Watchdog(tmp_path / "stacks.txt", 0.5, least_seconds=0.01), statistics.median

    def median_beside_the_loop(values):
        walked = iter(values)
        first = next(walked)
        watchdog._took.append(0.0)
        return median([first, *walked])

    for _ in range(KNOWN_AFTER):
        watchdog.step()
    monkeypatch.setattr(statistics, "median", median_beside_the_loop)
    said, end = "", time.monotonic() + 60
    with watchdog:
        while "its median is" not in said and time.monotonic() < end:
            time.sleep(0.02)
            said += capsys.readouterr().err
    assert "its median is" in said
