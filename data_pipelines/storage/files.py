"""Files by path or by address (gs://, s3://, memory://, ...): the few operations that sources need."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fsspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from world_model import kinds


def is_remote(file: str) -> bool:
    """True for an address, which fsspec reads."""
    return "://" in file


def system_of(file: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The (file system, path in it). A local path is taken as it is: colons and brackets in it mean nothing."""
    return fsspec.core.url_to_fs(file) if is_remote(file) else (fsspec.filesystem("file"), os.path.abspath(file))


def open_file(file: str) -> IO[bytes]:
    """Opens a file for reading. Raises OSError."""
    return fsspec.open(file, "rb").open() if is_remote(file) else open(file, "rb")


def exists(file: str) -> bool:
    """True for a file or folder that is there, even where another process made it a moment ago."""
    system, path = system_of(file)
    system.invalidate_cache()
    return system.exists(path)


def list_files(folder: str) -> list[str]:
    """The files right inside a folder, sorted; empty without the folder."""
    if not is_remote(folder):
        return sorted(str(file) for file in Path(folder).glob("*") if file.is_file())
    system, path = fsspec.core.url_to_fs(folder)
    with contextlib.suppress(FileNotFoundError):
        return sorted(system.unstrip_protocol(entry["name"]) for entry in system.ls(path, detail=True)
                      if entry["type"] == "file")
    return []


def find_files(folder: str, suffix: str) -> list[str]:
    """The files in a folder, or in one inside it, whose names end so; sorted; empty without the folder."""
    system, path = system_of(folder)
    found = [file for file in system.find(path) if file.endswith(suffix)]
    return sorted(map(system.unstrip_protocol, found) if is_remote(folder) else found)


def sizes(folder: str) -> dict[str, int]:
    """{name: bytes} of the files right inside a folder, by one listing; empty without the folder."""
    system, path = system_of(folder)
    with contextlib.suppress(FileNotFoundError):
        return {os.path.basename(entry["name"]): entry["size"] for entry in system.ls(path, detail=True, refresh=True)
                if entry["type"] != "directory"}
    return {}


def read_bytes(file: str) -> bytes:
    """The content of a file. Raises OSError where it cannot be read."""
    with open_file(file) as content:
        return content.read()


def read_json(file: str, rule: kinds.Rule):
    """The value in a JSON file. Raises OSError where it cannot be read, ValueError where it is no JSON or breaks the
    rule."""
    return kinds.parse(read_bytes(file), rule, file)


def read_json_lines(file: str, rule: kinds.Rule) -> list:
    """The values of a file with one on every line that is not empty; raises as `read_json`, naming the line."""
    return kinds.lines(read_bytes(file), rule, file)


@contextlib.contextmanager
def new_file(file: str) -> Iterator[str]:
    """Yields a path to write to. At the end of the block, what is there becomes `file`, all of it or nothing, whoever
    else writes it. Folders are made. Raises OSError where it cannot be written."""
    if is_remote(file):
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "new")
            yield local
            system, path = fsspec.core.url_to_fs(file)
            system.put_file(local, path)  # a store shows an object only when it is whole
        return
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{file}.partial-{secrets.token_hex(8)}")  # a process id is 1 in every container
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield str(partial)
        partial.replace(file)
    except OSError as error:
        if error.filename or not error.errno:
            raise
        raise OSError(error.errno, error.strerror, file) from error  # as of a full disk, which does not say which
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(file: str, data: bytes) -> None:
    """Writes a file as `new_file` does."""
    with new_file(file) as path:
        Path(path).write_bytes(data)


def write_text(file: str, text: str) -> None:
    """Writes a text file as `new_file` does."""
    write_bytes(file, text.encode())


def write_tensors(file: str, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file as `new_file` does."""
    with new_file(file) as path:
        try:
            save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path, metadata)
        except SafetensorError as error:
            raise OSError(f"{file} cannot be written: {error}") from error


def parse_tensors(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays in the content of a safetensors file. Raises ValueError, which names `where`, if it is none."""
    try:
        return load(data)
    except (SafetensorError, KeyError) as error:  # the latter: of a type that numpy does not have
        raise ValueError(f"{where} cannot be read: {error!r}") from error


def write_json(file: str, value) -> None:
    """Writes a JSON file, sorted and indented, as `new_file` does."""
    write_text(file, json.dumps(value, indent=1, sort_keys=True) + "\n")


_SPARED = 60  # seconds since its last use in which a copy is not deleted: another process may be about to open it


def local_copy(file: str, version: str = "") -> str:
    """The path of a file, or for an address that of a copy under the temporary folder (TMPDIR), made at the first call.

    Readers that know paths alone, as array_record's, need it. Each `version`, by default the file's size, has a copy of
    its own. Copies take at most half of what their disk can give them: those used longest ago are deleted first. Random
    reads from more than that fetch the same files again and again; TMPDIR then needs a larger disk.
    """
    if not is_remote(file):
        return file
    system, path = fsspec.core.url_to_fs(file)
    name = f"{hashlib.sha256(file.encode()).hexdigest()[:16]}-{version or system.size(path)}-{os.path.basename(path)}"
    copy = _own_folder() / name
    if not copy.is_file():
        _make_room(copy.parent, system.size(path), file)
        handle, partial = tempfile.mkstemp(dir=copy.parent)
        os.close(handle)
        system.get_file(path, partial)
        with contextlib.suppress(FileExistsError):  # the copy of another thread or process stays: it may be open
            os.link(partial, copy)
        os.unlink(partial)
    with contextlib.suppress(FileNotFoundError):
        os.utime(copy, ns=(time.time_ns(), copy.stat().st_mtime_ns))  # used now, and not changed
    return str(copy)


def _own_folder() -> Path:
    """The folder of this user's copies. Raises OSError where somebody else made what has its name."""
    folder = Path(tempfile.gettempdir()) / f"wamax-copies-{os.getuid()}"
    folder.mkdir(0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(f"{folder} is a link or another user's: remove it, or set TMPDIR to a folder of your own")
    return folder


def _make_room(folder: Path, needed: int, file: str) -> None:
    """Deletes old copies until `needed` more bytes fit. Raises OSError where they cannot."""
    found = []
    for copy in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has finished or deleted it meanwhile
            found.append((copy.stat().st_atime, copy.stat().st_size, copy))
    taken = sum(size for _, size, _ in found)
    limit = (taken + shutil.disk_usage(folder).free) // 2
    if needed > limit:
        raise OSError(f"{file}: a copy takes {needed:,} bytes, and {folder} may take {limit:,}: set TMPDIR")
    for used, size, copy in sorted(found):
        if taken + needed <= limit or used > time.time() - _SPARED:
            return
        copy.unlink(missing_ok=True)
        taken -= size
