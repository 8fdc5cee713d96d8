"""Windows after the frozen encoders, in array_record files: what training reads instead of video.

    manifest.json            identity: what the numbers depend on; a run that would make others is refused
    encoders.safetensors     the encoders' arrays, as "video.NAME" and "text.NAME"
    statistics.json          of normalisation
    texts.array_record       features of every distinct prompt, bfloat16 [its tokens, width]
    NAME/index.safetensors   lengths and rates of all episodes of a dataset, where windows may begin in them, and the
                             prompt of each training episode
    NAME/shard-I.array_record   window i is record i % W of shard i // W; empty where the window was unreadable
    NAME/shard-I.json        its size, hash and unreadable windows; written last
    _SUCCESS                 everything is there

A window has the same number here and in the video pipeline: order, resuming and replacing unreadable windows are one.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from safetensors.numpy import load_file

from data_pipelines.difference import first_difference
from data_pipelines.episode import BadEpisode, Episode, Source
from data_pipelines.lru import Lru
from data_pipelines.samples import SampleMaker

FORMAT = 1
_STORED = ("latents", "first_latents", "image_features", "frame_mask", "state", "actions", "action_mask")


class CacheError(OSError):
    """A latent cache that is unfinished, damaged, or another run's."""


def record_fields(spec: dict[str, tuple]) -> dict[str, tuple]:
    """name -> (shape, dtype) of what a record holds, in its order, out of `encoded_batch_spec`."""
    return {name: spec[name] for name in _STORED if name in spec}


def record_bytes(spec: dict[str, tuple]) -> int:
    """Size of a record."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in record_fields(spec).values())


class LatentCache:
    """A finished cache, read. Picklable; files are opened where they are used."""

    def __init__(self, path: Path | str, identity: dict, spec: dict[str, tuple]):
        """Raises CacheError where it is unfinished, a file has another size than written, or it was made for another
        `identity` (the manifest's), naming the first difference."""
        self.path, self.spec, self._fields = Path(path), spec, record_fields(spec)
        if not (self.path / "_SUCCESS").is_file():
            there = "unfinished; run launch.precompute again to go on" if self.path.is_dir() else "no such folder"
            raise CacheError(f"data.cache = {path}: {there}")
        self.manifest = json.loads((self.path / "manifest.json").read_text())
        if change := first_difference(self.manifest["identity"], identity, sides=("cache", "this run")):
            raise CacheError(f"data.cache = {path} was made for another config: {change}")
        self._per_shard = self.manifest["windows_per_shard"]
        for dataset, shards in json.loads((self.path / "_SUCCESS").read_text()).items():
            for shard, about in shards.items():
                file = self._shard(dataset, int(shard))
                size = file.stat().st_size if file.is_file() else "no file"
                if size != about["bytes"]:
                    raise CacheError(f"{file}: {about['bytes']} bytes were written, found {size}")

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_texts")}

    def encoders(self) -> dict:
        """{"video": {name: array}, "text": {...}}. Raises CacheError where they are not those of the latents."""
        arrays = load_file(self.path / "encoders.safetensors")
        if (found := arrays_hash(arrays)) != self.manifest["encoders"]:
            raise CacheError(f"{self.path}/encoders.safetensors has hash {found}, the latents were made with "
                             f"{self.manifest['encoders']}")
        return load_encoders(self.path)

    def statistics(self) -> dict[str, dict]:
        """{dataset: statistics} that state and actions are normalised by."""
        return json.loads((self.path / "statistics.json").read_text())

    def source(self, dataset: str, original: Callable[[], Source]) -> "CachedSource":
        """The episodes of a dataset; `original` opens their recordings where somebody asks for one."""
        index = self._index(dataset)
        return CachedSource(index["lengths"], index["rates"], index["kept"], original)

    def read(self, dataset: str, window: int, episode: int) -> dict[str, np.ndarray]:
        """The stored part of a batch's row, text features without padding. Raises BadEpisode where the window was or is
        unreadable."""
        file = self._shard(dataset, window // self._per_shard)
        try:
            data = self._reader(file).read([window % self._per_shard])[0]
            text = self._text(int(self._index(dataset)["text"][episode]))
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise BadEpisode(f"{file} record {window % self._per_shard}: cannot be read: {error}") from error
        if not data:
            reason = json.loads(file.with_suffix(".json").read_text())["bad"][str(window)]
            raise BadEpisode(f"{reason} (found when {file} was made)")
        if len(data) != record_bytes(self.spec):
            raise BadEpisode(f"{file} record {window % self._per_shard}: {len(data)} bytes, expected "
                             f"{record_bytes(self.spec)}")
        row, begin = {"text_features": text}, 0
        for name, (shape, dtype) in self._fields.items():
            count = math.prod(shape)
            row[name] = np.frombuffer(data, dtype, count, begin).reshape(shape)
            begin += count * np.dtype(dtype).itemsize
        return row

    def verify(self) -> Iterator[str]:
        """Reads everything; yields a sentence on each shard whose hash is not the one written."""
        for dataset, shards in json.loads((self.path / "_SUCCESS").read_text()).items():
            for shard, about in shards.items():
                file, digest = self._shard(dataset, int(shard)), hashlib.sha256()
                try:
                    for i in range(about["records"]):
                        digest.update(self._reader(file).read([i])[0])
                except (RuntimeError, ValueError, IndexError) as error:
                    yield f"{file}: cannot be read: {error}"
                    continue
                if digest.hexdigest() != about["sha256"]:
                    yield f"{file}: its records are not those that were written"

    def _shard(self, dataset: str, shard: int) -> Path:
        return shard_file(self.path, dataset, shard, ".array_record")

    @functools.cached_property
    def _readers(self) -> Lru:
        return Lru(128, drop=lambda reader: None)  # closed when the last reading thread lets it go

    @functools.cached_property
    def _texts(self) -> Lru:
        return Lru(1024)

    def _reader(self, file: Path) -> ArrayRecordReader:
        return self._readers.get(file) or self._readers.put(
            file, ArrayRecordReader(str(file), options="readahead_buffer_size:0"))

    def _text(self, number: int) -> np.ndarray:
        """bfloat16 [tokens of the prompt, width]."""
        found = self._texts.get(number)
        if found is None:
            (_, width), dtype = self.spec["text_features"]
            stored = self._reader(self.path / "texts.array_record").read([number])[0]
            rows = np.frombuffer(stored[:len(stored) // (2 * width) * 2 * width], dtype)
            found = self._texts.put(number, rows.reshape(-1, width))
        return found

    @functools.lru_cache(maxsize=64)  # noqa: B019  a run has one cache, which lives as long as it does
    def _index(self, dataset: str) -> dict[str, np.ndarray]:
        return load_file(self.path / dataset / "index.safetensors")


class CachedSource:
    """`Source` whose lengths, rates and stretches come from a cache; recordings are opened only where one is asked
    for."""

    def __init__(self, lengths: np.ndarray, rates: np.ndarray, kept: np.ndarray, original: Callable[[], Source]):
        self._lengths, self._rates, self._kept, self._original = lengths, rates, kept, original

    def lengths(self) -> np.ndarray:
        """int64 [episodes]."""
        return self._lengths

    def rates(self) -> np.ndarray:
        """float64 [episodes]."""
        return self._rates

    def kept(self) -> np.ndarray:
        """See `Source`."""
        return self._kept

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Episode:
        return self._opened[index]

    @functools.cached_property
    def _opened(self) -> Source:
        return self._original()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}


class CachedMaker:
    """A `SampleMaker` that reads its rows instead of making them."""

    def __init__(self, maker: SampleMaker, cache: LatentCache):
        self._maker, self._cache = maker, cache
        self.windows, self.dataset = maker.windows, maker.dataset

    def __call__(self, window: int, sample_index: int) -> dict[str, np.ndarray]:
        """One row of `world_model.batch.encoded_batch_spec`, its text features without padding; raises BadEpisode as
        `SampleMaker` does."""
        index, start = self.windows[window]
        row = self._cache.read(self.dataset.name, window, index)
        return row | self._maker.origin(index, start, sample_index)


def shard_file(path: Path, dataset: str, shard: int, suffix: str) -> Path:
    """PATH/NAME/shard-00003.SUFFIX."""
    return path / dataset / f"shard-{shard:05d}{suffix}"


def load_encoders(path: Path) -> dict:
    """{"video": {name: array}, "text": {...}} of a cache, "image" where it has one: what a checkpoint keeps."""
    parts: dict[str, dict] = {"video": {}, "text": {}}
    for name, value in load_file(path / "encoders.safetensors").items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


def arrays_hash(arrays: dict[str, np.ndarray]) -> str:
    """Of names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {value.shape} {value.dtype}".encode() + value.tobytes())
    return digest.hexdigest()[:16]


def write_json(file: Path, value: dict) -> None:
    """All of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    partial.replace(file)
