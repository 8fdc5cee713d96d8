"""Folders of workers' lines: gone at a normal end, and what a killed process left is gone at the next start."""

import subprocess
import sys
import tempfile
from pathlib import Path

from data_pipelines.worker_status import WorkerStatus

CODE = "import sys; from data_pipelines.worker_status import WorkerStatus; s = WorkerStatus(); print(s._folder, flush=True); sys.stdin.read()"


def started() -> tuple[subprocess.Popen, Path]:
    """A process that has a folder, and that folder."""
    process = subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               cwd=Path(__file__).parents[1], env={"TMPDIR": tempfile.gettempdir()})
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, left = started()
    living, kept = started()
    assert left.is_dir() and kept.is_dir()  # the second start has seen the first one live
    killed.kill()
    killed.wait()
    (tmp_path / "wamax-worker-status-foreign").symlink_to(kept)
    status = WorkerStatus()
    assert not left.exists() and kept.is_dir() and status.unfinished() == []
    status.close()
    status.close()
    assert not Path(status._folder).exists()
    living.kill()
    living.wait()
