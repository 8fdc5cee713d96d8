"""Files by path or by address (gs://, s3://, memory://, ...): the few things that sources ask of a store."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import fsspec


def is_remote(file: str) -> bool:
    """True for an address, which fsspec reads."""
    return "://" in file


def exists(file: str) -> bool:
    """True for a file or folder that is there."""
    system, path = fsspec.core.url_to_fs(file)
    return system.exists(path)


def listed(folder: str) -> list[str]:
    """The files right inside a folder, sorted; empty without the folder."""
    if not is_remote(folder):
        return sorted(str(file) for file in Path(folder).glob("*") if file.is_file())
    system, path = fsspec.core.url_to_fs(folder)
    with contextlib.suppress(FileNotFoundError):
        return sorted(system.unstrip_protocol(entry["name"]) for entry in system.ls(path, detail=True)
                      if entry["type"] == "file")
    return []


def read_bytes(file: str) -> bytes:
    """All of it. Raises OSError where it cannot be read."""
    with fsspec.open(file, "rb") as opened:
        return opened.read()


def read_text(file: str) -> str:
    """All of it. Raises OSError where it cannot be read, ValueError where it is not UTF-8."""
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from error


def read_json(file: str):
    """Raises OSError where it cannot be read, ValueError where it is not JSON."""
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def read_json_lines(file: str) -> list:
    """A value per line that is not empty; raises as `read_json`, naming the line."""
    values = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        try:
            values += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} line {number} is not JSON: {error}") from error
    return values


def write_text(file: str, text: str) -> None:
    """All of it or nothing, whoever else writes it. Raises OSError where it cannot be written."""
    if is_remote(file):
        with fsspec.open(file, "wb") as opened:  # a store shows an object only when it is whole
            opened.write(text.encode())
        return
    partial = Path(f"{file}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(file)


def local_copy(file: str) -> str:
    """The file itself, or for an address a copy under the temporary folder, made when it is first asked for.

    For readers that know paths alone. Copies of other sizes than the file now has are made anew, and nothing is
    deleted: the folder (TMPDIR) must hold every shard that is read.
    """
    if not is_remote(file):
        return file
    system, path = fsspec.core.url_to_fs(file)
    name = f"{hashlib.sha256(file.encode()).hexdigest()[:16]}-{system.size(path)}-{os.path.basename(path)}"
    copy = Path(tempfile.gettempdir()) / "wamax-copies" / name
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=copy.parent)
        os.close(handle)
        system.get_file(path, partial)
        os.replace(partial, copy)
    return str(copy)
