"""Episodes in RLDS layout from a TFDS dataset in array_record files, read without TensorFlow.

Which field is what is said by arguments, so another dataset is other arguments, not another reader. Pictures stay
encoded until a window asks for them.
"""

import collections
import functools
import io
import threading
from pathlib import Path

import numpy as np

from data_pipelines.episode import BadEpisode, Episode

_CACHE_BYTES = 2**28  # encoded episodes kept per process: finding the fields of a record costs more than a window


class RldsSource:
    """`Source` over one split of a TFDS dataset directory (the one that holds dataset_info.json)."""

    def __init__(self, name: str, path: str, *, rate: float, images: dict[str, str], state: str | None = None,
                 action: str | None = None, instruction: str = "language_instruction", split: str = "train"):
        """Args:
          rate: control steps per second.
          images: view name -> field of a step, as "observation/image"; state, action, instruction: fields likewise.

        Raises FileNotFoundError where the directory holds no dataset.
        """
        self.name, self.path, self.rate, self.split = name, path, rate, split
        self.images, self.state, self.action, self.instruction = dict(images), state, action, instruction
        if not (Path(path) / "dataset_info.json").is_file():
            raise FileNotFoundError(f"dataset {name!r}: no TFDS dataset in {path} (dataset_info.json is missing)")
        self._lengths: np.ndarray | None = None

    def __getstate__(self) -> dict:
        """Open files and the cache stay behind; lengths travel to worker processes."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_records", "_cache")}

    @functools.cached_property
    def _records(self):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.path)
        encoded: dict = {}
        for field in self.images.values():
            *parents, leaf = field.split("/")
            inner = encoded
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[leaf] = tfds.decode.SkipDecoding()
        return builder.as_data_source(split=self.split, decoders={"steps": encoded})

    @functools.cached_property
    def _cache(self) -> "_EpisodeCache":
        return _EpisodeCache()

    def lengths(self) -> np.ndarray:
        """int64 [episodes]. The first call reads every record once; pictures are not decoded."""
        if self._lengths is None:
            self._lengths = np.array([len(self._records[i]["steps"]) for i in range(len(self))], np.int64)
        return self._lengths

    def rates(self) -> np.ndarray:
        """float64 [episodes]."""
        return np.full(len(self), float(self.rate))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Episode:
        return self._cache.get(index, self._read)

    def _read(self, index: int) -> tuple[Episode, int]:
        """The episode and the bytes of its encoded pictures."""
        steps = list(self._records[index]["steps"])
        where = f"{self.path} split {self.split} episode {index}"
        pictures = {view: [_field(step, field, where) for step in steps] for view, field in self.images.items()}
        episode = Episode(
            dataset=self.name, index=index, length=len(steps), rate=self.rate,
            instruction=_text(_field(steps[0], self.instruction, where)) if steps else "",
            state=_numbers(steps, self.state, where), action=_numbers(steps, self.action, where),
            read_frames=functools.partial(_read_frames, pictures, self.images, where))
        return episode, sum(len(picture) for view in pictures.values() for picture in view)


class _EpisodeCache:
    """The episodes used last, up to _CACHE_BYTES, shared by the threads of a process."""

    def __init__(self):
        self._kept: collections.OrderedDict[int, tuple[Episode, int]] = collections.OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def get(self, index: int, read) -> Episode:
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index][0]
        episode, size = read(index)  # outside the lock: threads read different episodes at once
        with self._lock:
            if index not in self._kept:
                self._kept[index] = (episode, size)
                self._bytes += size
            while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][1]
        return episode


def _field(step: dict, field: str, where: str):
    """The value at "a/b" of a nested step. Raises BadEpisode naming the fields there are."""
    value = step
    for key in field.split("/"):
        if not isinstance(value, dict) or key not in value:
            raise BadEpisode(f"{where}: no field {field!r}; steps have {sorted(_names(step))}")
        value = value[key]
    return value


def _names(step: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in step.items():
        found += _names(value, f"{prefix}{key}/") if isinstance(value, dict) else [prefix + key]
    return found


def _numbers(steps: list[dict], field: str | None, where: str) -> np.ndarray | None:
    """float32 [length, dims] of a numeric field. Raises BadEpisode where steps differ in width."""
    if field is None:
        return None
    rows = [np.asarray(_field(step, field, where), np.float32).reshape(-1) for step in steps]
    if len({row.size for row in rows}) > 1:
        raise BadEpisode(f"{where}: {field!r} has {sorted({row.size for row in rows})} numbers at different steps")
    return np.stack(rows)


def _text(value) -> str:
    return value.decode("utf-8", errors="strict") if isinstance(value, bytes) else str(value)


def _read_frames(pictures: dict[str, list[bytes]], images: dict[str, str], where: str,
                 indices: np.ndarray) -> dict[str, np.ndarray]:
    """view -> uint8 [n, H, W, 3] of the asked steps alone."""
    distinct, back = np.unique(np.asarray(indices), return_inverse=True)
    return {view: np.stack([_picture(pictures[view][i], f"{where} step {i} {field}") for i in distinct])[back]
            for view, field in images.items()}


def _picture(encoded: bytes, where: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise BadEpisode(f"{where}: the picture cannot be decoded: {error}") from error
