"""What a process remembers of files, bounded."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Hashable
from typing import Any

from data_pipelines.episode import BadEpisode


class Lru:
    """The things used last, by name, up to a total size. Safe between threads."""

    def __init__(self, limit: int, size: Callable[[Any], int] = lambda value: 1,
                 drop: Callable[[Any], None] = lambda value: None):
        """size: of one thing, in the unit of `limit`; drop: called with what is forgotten."""
        self._limit, self._size, self._drop, self._lock = limit, size, drop, threading.Lock()
        self._kept: collections.OrderedDict = collections.OrderedDict()
        self._total = 0

    def get(self, name: Hashable):
        """None where nothing is kept under that name."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def put(self, name: Hashable, value):
        """Keeps and returns `value`."""
        gone = []
        with self._lock:
            if name in self._kept:
                gone.append(self._pop(name))
            self._kept[name] = value
            self._total += self._size(value)
            while self._total > self._limit and len(self._kept) > 1:
                gone.append(self._pop(next(iter(self._kept))))
        for each in gone:
            self._drop(each)
        return value

    def take(self, matches: Callable[[Hashable], bool]):
        """The thing used last whose name `matches`, no longer kept; None without one."""
        with self._lock:
            name = next((name for name in reversed(self._kept) if matches(name)), None)
            return None if name is None else self._pop(name)

    def clear(self) -> None:
        """Forgets everything without dropping it."""
        with self._lock:
            self._kept.clear()
            self._total = 0

    def _pop(self, name: Hashable):
        value = self._kept.pop(name)
        self._total -= self._size(value)
        return value


_first_seen = Lru(2**16)  # identity by file, since sources were last opened


def unchanged(file: str) -> tuple:
    """`identity` of a dataset's file. Raises BadEpisode where it is another one than when this process first asked."""
    found = identity(file)
    known = _first_seen.get(file) or _first_seen.put(file, found)
    if known != found:
        size = lambda name: "not there" if len(name) < 3 else f"{name[1]} bytes"
        raise BadEpisode(f"{file}: changed under the running job: it was {size(known)} when first read, and was "
                         f"written again since ({size(found)})")
    return found


def begin_again() -> None:
    """Forgets what files were like: a source that is opened now takes them as they are."""
    _first_seen.clear()


def identity(file: str) -> tuple:
    """A name for what is in a file: another one when it is replaced. Of a remote file only the address."""
    if "://" not in file:
        with contextlib.suppress(OSError):
            stat = os.stat(file)
            return (file, stat.st_size, stat.st_mtime_ns)
    return (file,)
