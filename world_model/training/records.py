"""Records of metrics: JSON lines in the workdir, and TensorBoard and Weights & Biases where asked."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from world_model import kinds
from world_model.training import SINKS

RECORD = kinds.fields({"step": kinds.whole()}, required=("step",))  # a line of metrics.jsonl


class Writer:
    """Writer of WORKDIR/metrics.jsonl, one record a line; only process 0 writes.

    Lines past `step`, left by a run that was killed after its last checkpoint, are dropped, so that the file is one
    clean history.
    """

    def __init__(self, workdir: Path, step: int, also: Sequence[str] = ()):
        self._file, self._workdir, self._also = None, Path(workdir), []
        if jax.process_index():
            return
        path = self._workdir / "metrics.jsonl"
        if path.exists():
            drop_lines_after(path, step)
        self._file = path.open("ab", buffering=0)  # unbuffered: a full disk is an error here, not at close
        self._also = [WRITERS[name](self._workdir, step) for name in also]

    def write(self, step: int, record: dict[str, float]) -> None:
        """Appends one record."""
        if self._file:
            self._file.write((json.dumps({"step": step, **record}) + "\n").encode())
            os.fsync(self._file.fileno())  # a mounted bucket shows, and keeps, nothing before
        for sink in self._also:
            sink.add(step, record)

    def picture(self, step: int, name: str, image: np.ndarray, encode: Callable[[np.ndarray], bytes]) -> None:
        """Keeps uint8 [H, W, 3] as WORKDIR/NAME/STEP.png, made by `encode`."""
        if self._file:
            path = self._workdir / name / f"{step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode(image))
        for sink in self._also:
            sink.picture(step, name, image)

    def close(self) -> None:
        """Closes the files."""
        for sink in (self._file, *self._also):
            if sink:
                sink.close()


def read_records(path: Path) -> list[dict]:
    """Reads the records of a metrics.jsonl; a last line without its end, which is just being written, is left out.
    Raises OSError, ValueError naming the line that is none."""
    return kinds.lines(path.read_bytes().rpartition(b"\n")[0], RECORD, str(path))


class TensorBoard:
    """Events in WORKDIR/tensorboard (extra: tensorboard)."""

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, record: dict[str, float]) -> None:
        """Adds one record."""
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds uint8 [H, W, 3]."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the workdir, gone on with by its whole path, as a sweep's runs are all called seed_N (extra: wandb);
    WANDB_PROJECT names the project."""

    def __init__(self, workdir: Path, step: int):
        import wandb
        self._wandb = wandb
        whole = workdir.resolve()
        self._run = wandb.init(id=hashlib.sha256(str(whole).encode()).hexdigest()[:16],
                               name=f"{whole.parent.name}/{whole.name}", dir=str(workdir), resume="allow")
        self._run.define_metric("*", step_metric="train_step")  # steps done again after a kill are kept

    def add(self, step: int, record: dict[str, float]) -> None:
        """Adds one record."""
        self._run.log({"train_step": step, **record})

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds uint8 [H, W, 3]."""
        self._run.log({"train_step": step, name: self._wandb.Image(image)})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


WRITERS: dict[str, Callable] = dict(zip(SINKS, (TensorBoard, WeightsAndBiases), strict=True))


def drop_lines_after(path: Path, step: int) -> None:
    """Cuts the file off before the first line past `step`, or one that a kill cut short."""
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or kinds.parse(line, RECORD, str(path))["step"] > step:
                break
        except ValueError:
            break
        kept += len(line)
    os.truncate(path, kept)
