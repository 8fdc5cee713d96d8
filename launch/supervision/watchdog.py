"""Watchdog for steps that hang: it writes the stacks of all threads while there is still something to see."""

import contextlib
import faulthandler
import math
import statistics
import sys
import threading
import time
from collections import deque
from pathlib import Path

KNOWN_AFTER = 5  # steps until the median means something


class Watchdog:
    """Context that writes all stacks to `path` once for every step over `times` the median and `least_seconds`.

    The run goes on: a slow disk and a dead host look alike from here, and ending is the runtime's decision. With
    times = 0 it never writes. Call `step()` at the end of each step.
    """

    def __init__(self, path: Path, times: float, least_seconds: float = 60.0):
        self._path, self._times, self._least = path, times, least_seconds
        self._took: deque[float] = deque(maxlen=100)
        self._began, self._ended = time.monotonic(), threading.Event()
        self._said = False

    def __enter__(self):
        if self._times:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_):
        self._ended.set()

    def step(self) -> None:
        """Notes that a step has ended."""
        now = time.monotonic()
        self._took.append(now - self._began)
        self._began, self._said = now, False

    @contextlib.contextmanager
    def paused(self):
        """What happens inside is no part of a step, and may take its time."""
        self._began = math.inf
        yield
        self._began = time.monotonic()

    def limit(self) -> float:
        """Returns the seconds after which a step counts as hung."""
        if len(self._took) < KNOWN_AFTER:
            return float("inf")  # compilation and the first steps take what they take
        return max(self._least, self._times * self._median())

    def _median(self) -> float:
        return statistics.median(list(self._took))  # a copy: the loop appends meanwhile

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._least / 4)):
            since = time.monotonic() - self._began
            if not self._said and since > self.limit():
                self._said = True
                with self._path.open("a") as file:
                    print(time.strftime("%F %T"), f"a step has taken {since:.0f} s", file=file, flush=True)
                    faulthandler.dump_traceback(file)
                print(f"warning: a step has taken {since:.0f} s, its median is {self._median():.2g} s; "
                      f"stacks of all threads in {self._path}", file=sys.stderr, flush=True)
