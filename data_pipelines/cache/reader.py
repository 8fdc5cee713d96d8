"""Reads a latent cache: windows after the frozen encoders, which training reads instead of video (cache/format.py).

A window has the same number here and in the video pipeline, so that order, resuming and the replacement of unreadable
windows are the same. The folder may be an address for fsspec (gs://, s3://, ...). array_record's reader knows paths
alone, so a shard is copied to TMPDIR when a window of it is first asked for (`files.local_copy` bounds what they take).
"""

import contextlib
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines.cache.format import (
    FORMAT,
    SUCCESS,
    TEXTS,
    CacheError,
    checked_index,
    comparable,
    index_name,
    load_encoders,
    parse_manifest,
    record_bytes,
    record_fields,
    shard_file,
)
from data_pipelines.cache.source import CachedSource
from data_pipelines.episode import BadEpisode, Source
from data_pipelines.samples import SampleMaker
from data_pipelines.statistics.stored import STATISTICS
from data_pipelines.storage import files
from data_pipelines.storage.lru import Lru, checked_identity, reset_identities
from world_model import kinds
from world_model.differences import first_difference


@contextlib.contextmanager
def _as_cache_error() -> Iterator[None]:
    """A file of a cache that cannot be read, as its reader's sentence says, is a CacheError."""
    try:
        yield
    except ValueError as error:
        raise CacheError(str(error)) from error


class LatentCache:
    """A finished cache. Picklable; files are opened where they are used."""

    def __init__(self, path: str, identity: dict, spec: dict[str, tuple]):
        """path: a folder or its address. Raises CacheError where it is unfinished, a file has another size than was
        written, or it was made for another `identity` (the manifest's), naming the first difference."""
        reset_identities()
        self.path, self.spec, self._fields = str(path), spec, record_fields(spec)
        if not files.exists(f"{self.path}/_SUCCESS"):
            there = "unfinished; run launch.precompute again to go on" if files.exists(self.path) else "no such folder"
            raise CacheError(f"data.cache = {path}: {there}")
        with _as_cache_error():
            self._read_manifest(identity)

    def _read_manifest(self, identity: dict) -> None:
        written = files.read_json(f"{self.path}/_SUCCESS", SUCCESS)
        if (found := written.get("format", 1)) != FORMAT:
            raise CacheError(f"data.cache = {self.path} has format {found}, this code reads {FORMAT}: make it again")
        self._files = {f"{self.path}/{name}": about for name, about in written["files"].items()} | {
            self._shard(dataset, int(shard)): about for dataset, shards in written["shards"].items()
            for shard, about in shards.items()}
        self.manifest = parse_manifest(self._checked("manifest.json"), f"{self.path}/manifest.json")
        if change := first_difference(self.manifest["identity"], comparable(identity), ("the cache", "this run")):
            raise CacheError(f"data.cache = {self.path} was made for another config: {change}")
        self._per_shard = self.manifest["windows_per_shard"]
        found = {f"{folder}/{name}": size for folder in {os.path.dirname(file) for file in self._files}
                 for name, size in files.sizes(folder).items()}
        for file, about in self._files.items():
            if found.get(file) != about["bytes"]:
                raise CacheError(f"{file}: {about['bytes']} bytes were written, found {found.get(file, 'no file')}")

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_texts")}

    def encoders(self, parts: Iterable[str]) -> dict:
        """The encoders' arrays as `load_encoders` returns them. Raises CacheError where they are not those that the
        latents were made with."""
        self._checked("encoders.safetensors")
        with _as_cache_error():
            return load_encoders(self.path, parts)

    def statistics(self) -> dict[str, dict]:
        """The statistics that state and actions are normalised by, {dataset: statistics}."""
        with _as_cache_error():
            return kinds.parse(self._checked("statistics.json"), STATISTICS, f"{self.path}/statistics.json")

    def source(self, dataset: str, original: Callable[[], Source]) -> CachedSource:
        """The episodes of a dataset; `original` opens their recordings when somebody asks for one."""
        index = self._index(dataset)
        return CachedSource(index["lengths"], index["rates"], index["kept"], original)

    def read(self, dataset: str, window: int, episode: int, start: int = 0) -> dict[str, np.ndarray]:
        """The stored part of a batch's row, with text features without padding; start: the window's first step. Raises
        BadEpisode where the window was unreadable when the cache was made, or is now."""
        file = self._shard(dataset, window // self._per_shard)
        try:
            data = self._record(file, window % self._per_shard)
            row = self._text(_prompt_of(self._index(dataset), episode, start)) if "text_features" in self.spec else {}
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise BadEpisode(f"{file} record {window % self._per_shard}: cannot be read: {error}") from error
        if not data:
            reason = self._files[file].get("bad", {}).get(str(window), "no sample")
            raise BadEpisode(f"{reason} (found when {file} was made)")
        if len(data) != record_bytes(self.spec):
            raise BadEpisode(f"{file} record {window % self._per_shard}: {len(data)} bytes, expected "
                             f"{record_bytes(self.spec)}")
        begin = 0
        for name, (shape, dtype) in self._fields.items():
            count = math.prod(shape)
            row[name] = np.frombuffer(data, dtype, count, begin).reshape(shape)
            begin += count * np.dtype(dtype).itemsize
        return row

    def verify(self) -> Iterator[str]:
        """Reads everything and yields a sentence on each shard whose hash is not the one that was written."""
        for file, about in self._files.items():
            if "records" not in about:
                continue  # the other files are checked where they are read
            digest = hashlib.sha256()
            try:
                for i in range(about["records"]):
                    digest.update(self._record(file, i))
            except (RuntimeError, ValueError, IndexError, OSError, BadEpisode) as error:
                yield f"{file}: cannot be read: {error}"
                continue
            if digest.hexdigest() != about["sha256"]:
                yield f"{file}: its records are not those that were written"

    def _shard(self, dataset: str, shard: int) -> str:
        return shard_file(self.path, dataset, shard, ".array_record")

    def _about(self, file: str) -> dict:
        """What was written down of a file. Raises CacheError where nothing was."""
        if file not in self._files:
            raise CacheError(f"{self.path}/_SUCCESS does not list {file}")
        return self._files[file]

    def _checked(self, name: str) -> bytes:
        """The content of a small file. Raises CacheError where it is not the one that was written."""
        data, expected = files.read_bytes(f"{self.path}/{name}"), self._about(f"{self.path}/{name}")["sha256"]
        if (found := hashlib.sha256(data).hexdigest()) != expected:
            raise CacheError(f"{self.path}/{name} has hash {found[:16]}, {expected[:16]} was written")
        return data

    @functools.cached_property
    def _readers(self) -> Lru:
        return Lru(128)  # a reader closes itself when no thread holds it any more

    @functools.cached_property
    def _texts(self) -> Lru:
        return Lru(1024)

    def _record(self, file: str, number: int) -> bytes:
        """The content of a record, whose checksum is tested. Raises what array_record does, and BadEpisode where the
        file was replaced."""
        local = files.local_copy(file, self._about(file)["sha256"][:16])
        known = (*checked_identity(file), local)  # another version of the file has another copy
        reader = self._readers.get(known) or self._readers.put(
            known, ArrayRecordReader(local, options="readahead_buffer_size:0"))
        return reader.read([number])[0]

    def _text(self, number: int) -> dict[str, np.ndarray]:
        """{"text_features": bfloat16 [tokens of the prompt, width]}."""
        found = self._texts.get(number)
        if found is None:
            (_, width), dtype = self.spec["text_features"]
            stored = self._record(f"{self.path}/{TEXTS}", number)
            rows = np.frombuffer(stored[:len(stored) // (2 * width) * 2 * width], dtype)
            found = self._texts.put(number, rows.reshape(-1, width))
        return {"text_features": found}

    @functools.lru_cache(maxsize=64)  # noqa: B019  a run has one cache, which lives as long as it does
    def _index(self, dataset: str) -> dict[str, np.ndarray]:
        file = f"{self.path}/{index_name(dataset)}"
        with _as_cache_error():
            return checked_index(files.parse_tensors(self._checked(index_name(dataset)), file), file)


class CachedMaker:
    """Stands in for a `SampleMaker` and reads its rows instead of making them."""

    def __init__(self, maker: SampleMaker, cache: LatentCache):
        self._maker, self._cache = maker, cache
        self.windows, self.dataset = maker.windows, maker.dataset

    def __call__(self, window: int, sample_index: int) -> dict[str, np.ndarray]:
        """One row of the cache's fields, its text features without padding; raises BadEpisode as `SampleMaker` does."""
        index, start = self.windows[window]
        row = self._cache.read(self.dataset.name, window, index, start) | self._maker.origin(index, start, sample_index)
        return {name: row[name] for name in self._cache.spec}


def _prompt_of(index: dict[str, np.ndarray], episode: int, start: int) -> int:
    """The number of the prompt that holds at a step; caches before 2026-11-28 have one for each episode."""
    later = index.get("later", np.zeros((0, 3), np.int64))
    begin, end = np.searchsorted(later[:, 0], (episode, episode + 1))
    row = begin + int(np.searchsorted(later[begin:end, 1], start, side="right"))
    return int(later[row - 1, 2] if row > begin else index["text"][episode])
