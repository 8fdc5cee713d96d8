"""Writes a latent cache (cache/format.py says what it holds), shard by shard, from one process or many."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from ml_dtypes import bfloat16

from data_pipelines.cache.format import (
    ABOUT,
    ABOUT_SHARD,
    FORMAT,
    TEXTS,
    CacheError,
    comparable,
    index_name,
    parse_manifest,
    record_fields,
    shard_file,
)
from data_pipelines.storage import files
from world_model.differences import first_difference

_OPTIONS = "group_size:1,uncompressed"  # records are read one by one, and compressing noise gains nothing


class CacheWriter:
    """Writes one cache. Any number of processes may take different shards, and a second start goes on."""

    def __init__(self, path: str, manifest: dict, spec: dict[str, tuple], windows_per_shard: int):
        """Writes the manifest, which is JSON data. path: a folder or its address (gs://, s3://, ...). Raises CacheError
        where it holds a cache with another manifest."""
        self.path, self._fields = str(path), record_fields(spec)
        self._per_shard, self._with_texts = windows_per_shard, "text_features" in spec
        manifest = {"windows_per_shard": windows_per_shard, **manifest}
        if not files.exists(file := self._at("manifest.json")):
            files.write_json(file, manifest)
        now = manifest | {"identity": comparable(manifest["identity"])}
        if change := first_difference(parse_manifest(files.read_bytes(file), file), now, ("the folder", "this run")):
            raise CacheError(f"{path} holds another cache: {change}. Choose another folder, or remove this one")

    def shards(self, dataset: str, windows: int) -> list[int]:
        """The shards of a dataset that are not there yet."""
        there = files.sizes(self._at(dataset))
        return [i for i in range(-(-windows // self._per_shard))
                if os.path.basename(shard_file(self.path, dataset, i, ".json")) not in there]

    def windows_of(self, shard: int, windows: int) -> range:
        """The windows of a shard."""
        return range(shard * self._per_shard, min((shard + 1) * self._per_shard, windows))

    def write_shard(self, dataset: str, shard: int, rows: Iterator[dict | str],
                    check: Callable[[dict[str, str]], None] = lambda bad: None) -> dict:
        """Writes a shard, all of it or nothing, and returns its JSON. rows: one for each window, or the reason why the
        window is unreadable; check: is given {window: reason}, and what it raises leaves the shard unmade."""
        bad: dict[str, str] = {}

        def records() -> Iterator[bytes]:
            for window, row in enumerate(rows, shard * self._per_shard):
                if isinstance(row, str):
                    bad[str(window)] = row
                    yield b""
                else:
                    yield b"".join(np.asarray(row[name], dtype).tobytes() for name, (_, dtype) in self._fields.items())

        about = _write_records(shard_file(self.path, dataset, shard, ".array_record"), records()) | {"bad": bad}
        check(bad)
        files.write_json(shard_file(self.path, dataset, shard, ".json"), about)
        return about

    def write_texts(self, prompts: Sequence[str], features: Callable[[str], np.ndarray]) -> None:
        """Writes the features [tokens, width] of each distinct prompt, without padding, unless those of the same
        prompts are there: a caption may have been changed since an earlier start."""
        digest = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
        there = files.exists(file := self._at("texts.json"))
        if not there or files.read_json(file, ABOUT).get("prompts") != digest:
            # a prompt without tokens is one byte, so that no record is empty
            records = (np.asarray(features(each), bfloat16).tobytes() or b"\0" for each in prompts)
            files.write_json(file, _write_records(self._at(TEXTS), records) | {"prompts": digest})

    def write_index(self, dataset: str, **arrays: np.ndarray) -> None:
        """Writes a dataset's index: lengths int64 and rates float64 of all episodes; kept, what `Source.stretches`
        returns; text int64, the number of each episode's prompt, -1 where it has none; later int64 [changes, 3], the
        sorted (episode, step, number) of prompts that hold from a later step on."""
        files.write_tensors(self._at(index_name(dataset)), arrays)

    def finish(self, windows: dict[str, int]) -> bool:
        """Writes _SUCCESS where every shard of {dataset: windows} is there, whichever process wrote it; returns whether
        it did."""
        if any(self.shards(name, count) for name, count in windows.items()):
            return False
        names = ["manifest.json", "statistics.json", "encoders.safetensors", *map(index_name, windows)]
        files.write_json(self._at("_SUCCESS"), {
            "format": FORMAT,
            "files": {name: _about(files.read_bytes(self._at(name))) for name in names}
            | ({TEXTS: files.read_json(self._at("texts.json"), ABOUT)} if self._with_texts else {}),
            "shards": {name: {str(i): files.read_json(shard_file(self.path, name, i, ".json"), ABOUT_SHARD)
                              for i in range(-(-count // self._per_shard))} for name, count in windows.items()}})
        return True

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"


def _write_records(file: str, records: Iterable[bytes]) -> dict:
    """Writes an array_record file; returns {"records", "bytes", "sha256" of the records one after the other}."""
    digest, count = hashlib.sha256(), 0
    with files.new_file(file) as path:
        writer = ArrayRecordWriter(path, _OPTIONS)
        for record in records:
            _written(file, writer.write, record)
            digest.update(record)
            count += 1
        _written(file, writer.close)
        size = os.path.getsize(path)
    return {"records": count, "bytes": size, "sha256": digest.hexdigest()}


def _written(file: str, write: Callable, *record: bytes) -> None:
    """Calls a function of the writer, whose errors, as of a full disk, are plain RuntimeErrors. Raises OSError."""
    try:
        write(*record)
    except RuntimeError as error:
        raise OSError(f"{file} cannot be written: {error}") from error


def _about(data: bytes) -> dict:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def save_encoders(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes encoders.safetensors; arrays: PART.NAME."""
    files.write_tensors(f"{path}/encoders.safetensors", arrays)
