"""Commands as children: their errors are kept as a sentence, and who stops the parent stops them too."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

STOPPED = 128 + signal.SIGTERM  # exit code of what saved and ended because it was asked to


class Stopped(SystemExit):
    """Raised once the child has ended where the parent was asked to stop meanwhile."""


def cores() -> int:
    """The processor cores that this process, and so its children, may use: taskset or a scheduler may give it few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(commands: list[list[str]]) -> list[str | None]:
    """Runs each `python -m COMMAND` to its end, all at a time. Returns for each None, or what it said last on standard
    error where it failed.

    SIGTERM and SIGINT reach the children as SIGTERM, so that a training saves; Stopped is raised when all have ended.
    """
    children: list[subprocess.Popen] = []
    asked: list[int] = []

    def stop(number, _frame):
        asked.append(number)
        for each in children:
            each.terminate()

    def one(command: list[str]) -> str | None:
        if asked:
            return None
        child = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, errors="replace")
        children.append(child)
        if asked:  # the signal came before the child was listed
            child.terminate()
        last = ""
        for line in child.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
        code = child.wait()
        return None if code == 0 else last or f"exit code {code}"

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with ThreadPoolExecutor(len(commands)) as pool:
            problems = list(pool.map(one, commands))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise Stopped(STOPPED)
    return problems
