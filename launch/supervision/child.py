"""A command as a child: its errors are kept as a sentence, and who stops the parent stops it too."""

import signal
import subprocess
import sys

STOPPED = 128 + signal.SIGTERM  # exit code of what saved and ended because it was asked to


class Stopped(SystemExit):
    """Raised once the child has ended where the parent was asked to stop meanwhile."""


def run(command: list[str]) -> str | None:
    """Runs `python -m COMMAND` to its end. Returns None, or what it said last on standard error where it failed.

    SIGTERM and SIGINT reach the child as SIGTERM, so that a training saves; Stopped is raised when it has ended.
    """
    child = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, errors="replace")
    asked: list[int] = []

    def stop(number, _frame):
        asked.append(number)
        child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        last = ""
        for line in child.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise Stopped(STOPPED)
    return None if code == 0 else last or f"exit code {code}"
