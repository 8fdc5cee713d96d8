"""What each worker process is working on, for the case that one dies: a C library's crash leaves no traceback."""

import contextlib
import fcntl
import functools
import mmap
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

_WIDTH = 256  # bytes of a process's line
_PREFIX, _OWNER = "wamax-worker-status-", "owner"  # prefix of the folders; the file that a living process holds locked


class WorkerStatus:
    """A line in a mapped file for every worker process; a process that is killed leaves its line behind."""

    def __init__(self):
        _remove_stale()
        self._folder = tempfile.mkdtemp(prefix=_PREFIX)
        self._lock = os.open(f"{self._folder}/{_OWNER}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(f"{self._folder}/{_OWNER}.new", f"{self._folder}/{_OWNER}")

    @functools.cached_property
    def _line(self) -> mmap.mmap | None:
        """The line of this process; None where it is no worker."""
        if multiprocessing.parent_process() is None:
            return None
        with open(Path(self._folder) / str(os.getpid()), "wb+") as opened:
            opened.truncate(_WIDTH)
            return mmap.mmap(opened.fileno(), _WIDTH)

    @contextlib.contextmanager
    def working_on(self, what: str):
        """Makes this process's line say `what` until the context ends."""
        if self._line is not None:
            self._line[:] = what.encode()[:_WIDTH].ljust(_WIDTH, b"\0")
        yield  # not in a try: an exception says itself where it comes from, so its line may stay
        if self._line is not None:
            self._line[:] = bytes(_WIDTH)

    def unfinished(self) -> list[str]:
        """The lines of the processes that are in the middle of something."""
        lines = {file.name: file.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
                 for file in sorted(Path(self._folder).iterdir()) if file.name != _OWNER}
        return [f"process {name}: {line}" for name, line in lines.items() if line]

    def close(self) -> None:
        """Removes the folder; may be called twice."""
        shutil.rmtree(self._folder, ignore_errors=True)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def __getstate__(self) -> dict:
        """Worker processes share the folder; each maps a line of its own."""
        return {"_folder": self._folder, "_lock": None}


def _remove_stale() -> None:
    """Removes what killed processes of this user left behind: nobody holds the lock of their folders any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
