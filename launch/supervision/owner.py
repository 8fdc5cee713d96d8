"""Ownership of a workdir: one run at a time trains in it, and a second start is refused before it touches anything.

The owner holds the kernel's lock on WORKDIR/owner.lock, which ends with its process, however that ends. Machines that
share a mounted bucket do not see each other's locks: the owner also writes who it is into the file, and a beat, and
another machine takes the workdir only where it is empty or the beat has stopped.
"""

import contextlib
import fcntl
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from world_model import kinds

BEAT_SECONDS = 20.0
DEAD_AFTER = 100.0  # seconds without a beat; mounted buckets may show a file as it was a minute ago
KERNEL = Path("/proc/sys/kernel/random/boot_id")  # the same for all containers of a running machine


_OWNER = kinds.fields({}, required=("host", "pid", "since", "kernel"))


class WorkdirTaken(ValueError):
    """Raised where another run is training in the workdir; the message says which."""


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Holds the workdir for this run; only process 0 does anything. Raises WorkdirTaken, OSError."""
    if jax.process_index():
        yield
        return
    path, ended = workdir / "owner.lock", threading.Event()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        _take(file, path)
        beats = threading.Thread(target=_beat, args=(file, ended), daemon=True)
        beats.start()
        try:
            yield
        finally:
            ended.set()
            beats.join()
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
    finally:
        os.close(file)


def _take(file: int, path: Path) -> None:
    locked, there = _lock(file), path.read_bytes()
    if locked is False:
        raise _taken(path, there)
    if not there or (locked and _owner(there).get("kernel") == _kernel()):
        return
    print(f"{path} is host {_owner(there).get('host')}'s: waiting {DEAD_AFTER:.0f} s for a sign that its run goes on",
          flush=True)
    end = time.monotonic() + DEAD_AFTER
    while time.monotonic() < end:
        time.sleep(min(BEAT_SECONDS, DEAD_AFTER) / 4)
        now = path.read_bytes()
        if now and now != there:
            raise _taken(path, now)
        if not now:
            return


def _taken(path: Path, there: bytes) -> WorkdirTaken:
    owner = _owner(there)
    who = f"process {owner['pid']} of host {owner['host']}, since {owner['since']}" if owner else "another process"
    return WorkdirTaken(f"{path.parent} is being trained in by {who}: stop that run (SIGTERM saves), or give another "
                        "--workdir")


def _owner(there: bytes) -> dict:
    """Reads what an owner wrote; {} where nobody did, or it is just being written."""
    try:
        return kinds.parse(there, _OWNER, "owner.lock")
    except ValueError:
        return {}


def _lock(file: int) -> bool | None:
    """Whether this process has the lock now; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _beat(file: int, ended: threading.Event) -> None:
    """Writes the owner and the number of the beat, until the run ends. A full disk is the run's trouble, not ours."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
             "kernel": _kernel()}
    for beat in itertools.count():
        with contextlib.suppress(OSError):
            data = json.dumps(owner | {"beat": beat}).encode()
            os.pwrite(file, data, 0)
            os.ftruncate(file, len(data))
            os.fsync(file)
        if ended.wait(BEAT_SECONDS):
            return


def _kernel() -> str:
    return KERNEL.read_text().strip() if KERNEL.exists() else socket.gethostname()
