"""Episodes in RLDS layout from a TFDS dataset in array_record files, read without TensorFlow.

Which field is what is said by arguments, so another dataset is other arguments, not another reader. Pictures stay
encoded until a window asks for them.
"""

import functools
import io
import json
import logging
import os
from pathlib import Path

import numpy as np

from data_pipelines.episode import BadEpisode, Episode


class RldsSource:
    """`Source` over one split of a TFDS dataset directory (the one that holds dataset_info.json)."""

    def __init__(self, name: str, path: str, *, rate: float, images: dict[str, str], state: str | None = None,
                 action: str | None = None, instruction: str | None = "language_instruction", split: str = "train"):
        """Args:
          rate: control steps per second.
          images: view name -> field of a step, as "observation/image"; state, action, instruction: fields likewise.

        Raises FileNotFoundError where the directory holds no dataset.
        """
        self.name, self.path, self.rate, self.split = name, path, float(rate), split
        self.images, self.state, self.action, self.instruction = dict(images), state, action, instruction
        if not (Path(path) / "dataset_info.json").is_file():
            below = [str(p.parent) for p in sorted(Path(path).glob("**/dataset_info.json"))[:4]]
            raise FileNotFoundError(f"dataset {name!r}: no TFDS dataset in {path} (dataset_info.json is missing)"
                                    + (f"; there is one in {', '.join(below)}" if below else ""))
        self._lengths: np.ndarray | None = None

    def __getstate__(self) -> dict:
        """Open files stay behind; lengths travel to worker processes."""
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}

    @functools.cached_property
    def _opened(self):
        """(records as bytes, parser of a record, split info). Raises BadEpisode without the split or a field.

        TFDS could decode steps too, but one by one: parsing whole columns is 20 times faster.
        """
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.example_parser import ExampleParserNp

        builder = tfds.builder_from_directory(self.path)
        if self.split not in builder.info.splits:
            raise BadEpisode(f"{self.path}: no split {self.split!r}; there are {sorted(builder.info.splits)}")
        layout = builder.info.features.get_serialized_info()
        known = sorted(_names(layout["steps"])) if "steps" in layout else []
        for field in (*self.images.values(), self.state, self.action, self.instruction):
            if field is not None and field not in known:
                raise BadEpisode(f"{self.path}: no field {field!r}; steps have {known}")
        records = builder.as_data_source(self.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        return records, ExampleParserNp(layout), builder.info.splits[self.split]

    def _steps(self, index: int) -> dict:
        """The fields of an episode, each with its steps on the leading axis; pictures encoded."""
        from google.protobuf.message import DecodeError

        records, parser, _ = self._opened
        try:
            return parser.parse_example(records[index])["steps"]
        except (DecodeError, RuntimeError, ValueError, KeyError) as error:
            raise BadEpisode(f"{self._where(index)}: the record cannot be read: {error}") from error

    def _where(self, index: int) -> str:
        return f"{self.path} split {self.split} episode {index}"

    def lengths(self) -> np.ndarray:
        """int64 [episodes]. Reads every record once and leaves the answer in PATH/lengths-SPLIT.json."""
        if self._lengths is None:
            file = Path(self.path) / f"lengths-{self.split}.json"
            info = self._opened[2]
            key = {"shard_lengths": list(info.shard_lengths), "num_bytes": info.num_bytes}
            kept = json.loads(file.read_text()) if file.is_file() else {}
            if {name: kept.get(name) for name in key} != key:
                kept = {**key, "lengths": [self._length(i) for i in range(len(self))]}
                if all(kept["lengths"]):
                    _write(file, json.dumps(kept))
            # An unreadable record counts as one step, so that it is drawn and reported instead of forgotten.
            self._lengths = np.maximum(np.array(kept["lengths"], np.int64), 1)
        return self._lengths

    def _length(self, index: int) -> int:
        """0 for an unreadable record."""
        try:
            return len(_first_column(self._steps(index)))
        except BadEpisode:
            return 0

    def rates(self) -> np.ndarray:
        """float64 [episodes]."""
        return np.full(len(self), self.rate)

    def __len__(self) -> int:
        return len(self._opened[0])

    def __getitem__(self, index: int) -> Episode:
        steps, where = self._steps(index), self._where(index)
        pictures = {view: _field(steps, field) for view, field in self.images.items()}
        length = len(_first_column(steps))
        text = _field(steps, self.instruction)[0] if self.instruction and length else ""
        return Episode(
            dataset=self.name, index=index, length=length, rate=self.rate,
            instruction=text.decode("utf-8") if isinstance(text, bytes) else str(text),
            state=_numbers(steps, self.state, where), action=_numbers(steps, self.action, where),
            read_frames=functools.partial(_read_frames, pictures, self.images, where))


def _write(file: Path, text: str) -> None:
    """All of it or nothing, whoever else writes it; a folder that cannot be written to costs a scan per run."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(file)
    except OSError as error:
        logging.warning("%s cannot be kept (%s): every run reads all records to find episode lengths", file, error)


def _field(steps: dict, field: str):
    """The value at "a/b" of nested fields."""
    return functools.reduce(lambda value, key: value[key], field.split("/"), steps)


def _names(steps: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in steps.items():
        found += _names(value, f"{prefix}{key}/") if isinstance(value, dict) else [prefix + key]
    return found


def _first_column(steps: dict):
    return _field(steps, _names(steps)[0])


def _numbers(steps: dict, field: str | None, where: str) -> np.ndarray | None:
    """float32 [length, dims] of a numeric field. Raises BadEpisode where a number is not finite."""
    if field is None:
        return None
    rows = np.asarray(_field(steps, field), np.float32)
    rows = rows.reshape(len(rows), -1)
    for step, dim in np.argwhere(~np.isfinite(rows)):
        raise BadEpisode(f"{where} step {step}: {field}[{dim}] is {rows[step, dim]}")
    return rows


def _read_frames(pictures: dict[str, np.ndarray], images: dict[str, str], where: str,
                 indices: np.ndarray) -> dict[str, np.ndarray]:
    """view -> uint8 [n, H, W, 3] of the asked steps alone."""
    distinct, back = np.unique(np.asarray(indices), return_inverse=True)
    return {view: _alike([_picture(pictures[view][i], f"{where} step {i} {field}") for i in distinct],
                         distinct, f"{where} {field}")[back] for view, field in images.items()}


def _alike(frames: list[np.ndarray], steps: np.ndarray, where: str) -> np.ndarray:
    for step, frame in zip(steps, frames):
        if frame.shape != frames[0].shape:
            raise BadEpisode(f"{where}: the picture of step {step} is {frame.shape[0]} x {frame.shape[1]}, that of "
                             f"step {steps[0]} {frames[0].shape[0]} x {frames[0].shape[1]}")
    return np.stack(frames)


def _picture(encoded, where: str) -> np.ndarray:
    """uint8 [H, W, 3]; the strict decoder, which refuses what is cut short."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, TypeError) as error:  # an UnidentifiedImageError is an OSError
        raise BadEpisode(f"{where}: the picture cannot be decoded: {error}") from error
