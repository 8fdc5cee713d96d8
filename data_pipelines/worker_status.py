"""What each worker process is working on, for the case that one dies: a C library's crash leaves no traceback."""

import contextlib
import functools
import mmap
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

_WIDTH = 256  # bytes of a process's line


class WorkerStatus:
    """A line in a mapped file for every worker process; a process that is killed leaves its line behind."""

    def __init__(self):
        self._folder = tempfile.mkdtemp(prefix="wamax-worker-status-")

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
        """Until the context ends, this process's line says `what`."""
        if self._line is not None:
            self._line[:] = what.encode()[:_WIDTH].ljust(_WIDTH, b"\0")
        yield  # not in a try: an exception says itself where it comes from, so its line may stay
        if self._line is not None:
            self._line[:] = bytes(_WIDTH)

    def unfinished(self) -> list[str]:
        """The lines of the processes that are in the middle of something."""
        lines = {file.name: file.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
                 for file in sorted(Path(self._folder).iterdir())}
        return [f"process {name}: {line}" for name, line in lines.items() if line]

    def close(self) -> None:
        """Removes the folder; may be called twice."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __getstate__(self) -> dict:
        """Worker processes share the folder; each maps a line of its own."""
        return {"_folder": self._folder}
