"""What a process keeps of files in memory: a bounded cache, and a check that files stay as they are."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

from data_pipelines.episode import BadEpisode


class Lru:
    """A cache of the values used last, by a hashable name, up to a total size. Threads may share it."""

    def __init__(self, limit: int, size: Callable[[Any], int] = lambda value: 1,
                 drop: Callable[[Any], None] = lambda value: None):
        """size: the size of a value, in the unit of `limit`; drop: called with each value that has to go."""
        self._limit, self._size, self._drop, self._lock = limit, size, drop, threading.Lock()
        self._kept: collections.OrderedDict = collections.OrderedDict()
        self._total = 0

    def get(self, name):
        """The value of that name; None where nothing is kept under it."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def put(self, name, value):
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

    def take(self, matches: Callable[[Any], bool]):
        """The value used last whose name `matches`, which is kept no longer; None where there is none."""
        with self._lock:
            name = next((name for name in reversed(self._kept) if matches(name)), None)
            return None if name is None else self._pop(name)

    def clear(self) -> None:
        """Empties the cache; no value is dropped."""
        with self._lock:
            self._kept.clear()
            self._total = 0

    def _pop(self, name):
        value = self._kept.pop(name)
        self._total -= self._size(value)
        return value


_identities = Lru(2**16)  # by file, since sources were last opened


def checked_identity(file: str) -> tuple:
    """The `identity` of a dataset's file. Raises BadEpisode where it is not the one that this process first found."""
    found = identity(file)
    known = _identities.get(file) or _identities.put(file, found)
    if known != found:
        raise BadEpisode(f"{file}: changed under the running job: it was {_size(known)} when first read, and was "
                         f"written again since ({_size(found)})")
    return found


def _size(name: tuple) -> str:
    return "not there" if len(name) < 3 else f"{name[1]} bytes"


def reset_identities() -> None:
    """Makes `checked_identity` take files as they are now; called when a source is opened."""
    _identities.clear()


def identity(file: str) -> tuple:
    """A name for what is in a file: it changes when the file is replaced. For a remote file it is the address alone."""
    if "://" not in file:
        with contextlib.suppress(OSError):
            stat = os.stat(file)
            return (file, stat.st_size, stat.st_mtime_ns)
    return (file,)
