"""Files by path or address: whole or not at all; copies of remote files stay within their bound."""

import concurrent.futures
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from data_pipelines.storage import files
from world_model import kinds


@pytest.mark.parametrize("folder", ["local", "memory"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path, folder):
    folder = str(tmp_path) if folder == "local" else f"memory://{tmp_path.name}"
    with pytest.raises(KeyError), files.new_file(f"{folder}/new/file") as path:
        with open(path, "w") as opened:
            opened.write("half")
        raise KeyError
    assert not files.exists(f"{folder}/new/file") and files.sizes(f"{folder}/new") == {}
    files.write_json(f"{folder}/new/file", {"b": 1, "a": [2]})
    assert files.read_json(f"{folder}/new/file", kinds.MAP) == {"a": [2], "b": 1}
    assert files.sizes(f"{folder}/new") == {"file": len(files.read_bytes(f"{folder}/new/file"))}


def test_copies_are_bounded_and_the_oldest_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(
        free=500 - sum(file.stat().st_size for file in folder.iterdir())))  # so that copies may take 250 bytes
    memory, copies = fsspec.filesystem("memory"), []
    for i in range(3):
        memory.pipe(f"/copies/{i}", bytes([i]) * 100)
    for i in (0, 1, 0, 2):
        copies.append(files.local_copy(f"memory://copies/{i}"))
        assert Path(copies[-1]).read_bytes() == bytes([i]) * 100
        os.utime(copies[-1], (1000 + len(copies),) * 2)  # long ago, the later the newer
    assert copies[0] == copies[2] and [os.path.exists(copies[i]) for i in (0, 1, 3)] == [True, False, True]
    memory.pipe("/copies/large", bytes(251))
    with pytest.raises(OSError, match="copies/large: a copy takes 251 bytes, and .* may take 250: set TMPDIR"):
        files.local_copy("memory://copies/large")


def test_a_copy_in_use_stays_and_another_version_is_another_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=200))
    fsspec.filesystem("memory").pipe("/versions/a", bytes(90))
    one, other = (files.local_copy("memory://versions/a", version) for version in ("1", "2"))
    assert one != other and os.path.exists(one) and os.path.exists(other)
    assert files.local_copy(one) == one
    before = os.stat(one)
    os.utime(one, ns=(10**12, before.st_mtime_ns))
    assert files.local_copy("memory://versions/a", "1") == one
    assert os.stat(one).st_mtime_ns == before.st_mtime_ns and os.stat(one).st_atime > 1000  # used, and not changed


def test_threads_that_want_the_same_copy_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fsspec.filesystem("memory").pipe("/threads/a", bytes(100_000))

    def copied(_) -> tuple:
        path = files.local_copy("memory://threads/a")
        return path, os.stat(path).st_ino, os.stat(path).st_mtime_ns

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(copied, range(64)))) == 1
    assert len(os.listdir(tmp_path / f"wamax-copies-{os.getuid()}")) == 1


def test_temporary_names_are_new_and_follow_no_link(tmp_path, monkeypatch):
    """Whatever the process id is: a killed writer leaves its name behind, and somebody may have planted a link."""
    target = tmp_path / "target"
    target.write_text("kept")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with files.new_file(f"{tmp_path}/file") as first, files.new_file(f"{tmp_path}/file") as second:
        assert first != second
        Path(first).write_text("first " * 1000)
        Path(second).write_text("second")
    assert (tmp_path / "file").read_text() == "first " * 1000
    assert Path(tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~(umask := os.umask(0)) and os.umask(umask) == 0
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "known")
    (tmp_path / "file.partial-known").symlink_to(target)
    with pytest.raises(FileExistsError), files.new_file(f"{tmp_path}/file"):
        pass
    assert target.read_text() == "kept" and (tmp_path / "file").read_text() == "first " * 1000


def test_copies_lie_in_a_folder_of_this_user(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    fsspec.filesystem("memory").pipe("/owned/a", bytes(9))
    (tmp_path / "theirs").mkdir()
    (folder := tmp_path / f"tmp/wamax-copies-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="is a link or another user's: remove it, or set TMPDIR"):
        files.local_copy("memory://owned/a")
    folder.unlink()
    assert Path(files.local_copy("memory://owned/a")).parent == folder and folder.stat().st_mode & 0o77 == 0
    assert not list((tmp_path / "theirs").iterdir())


def test_a_full_disk_is_named_with_the_file(tmp_path):
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"), \
            files.new_file(f"{tmp_path}/file"), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    assert not list(tmp_path.iterdir())
