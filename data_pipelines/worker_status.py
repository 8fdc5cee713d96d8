"""What each worker process is at, for the case that one dies: a C library's crash leaves no traceback."""

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
    """A mapped line per worker process; one that is killed leaves its line behind."""

    def __init__(self):
        self._folder = tempfile.mkdtemp(prefix="wamax-board-")

    @functools.cached_property
    def _line(self) -> mmap.mmap | None:
        """This process's; None in the one that nobody started."""
        if multiprocessing.parent_process() is None:
            return None
        with open(Path(self._folder) / str(os.getpid()), "wb+") as opened:
            opened.truncate(_WIDTH)
            return mmap.mmap(opened.fileno(), _WIDTH)

    @contextlib.contextmanager
    def at(self, place: str):
        """This process works on `place` until the context ends."""
        if self._line is not None:
            self._line[:] = place.encode()[:_WIDTH].ljust(_WIDTH, b"\0")
        yield  # not in a try: what ends by an exception is named by that
        if self._line is not None:
            self._line[:] = bytes(_WIDTH)

    def places(self) -> list[str]:
        """Of the processes that are in the middle of something."""
        lines = {file.name: file.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
                 for file in sorted(Path(self._folder).iterdir())}
        return [f"process {name}: {line}" for name, line in lines.items() if line]

    def close(self) -> None:
        """Removes the folder; may be called twice."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __getstate__(self) -> dict:
        return {"_folder": self._folder}
