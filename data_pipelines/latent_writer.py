"""Writes a latent cache (data_pipelines/latent_cache.py), shard by shard, from one process or many."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from data_pipelines.difference import first_difference
from data_pipelines.latent_cache import FORMAT, CacheError, record_fields, shard_file, write_json

_OPTIONS = "group_size:1,uncompressed"  # records are found one by one, and float noise does not shrink


class CacheWriter:
    """Writes one cache, from any number of processes that take different shards; a second start goes on."""

    def __init__(self, path: Path, manifest: dict, spec: dict[str, tuple], windows_per_shard: int):
        """manifest: JSON data. Raises CacheError where the folder holds a cache with another one."""
        self.path, self._fields = Path(path), record_fields(spec)
        self._per_shard = windows_per_shard
        manifest = {"format": FORMAT, "windows_per_shard": windows_per_shard, **manifest}
        file = self.path / "manifest.json"
        if file.is_file() and (
                change := first_difference(json.loads(file.read_text()), manifest, sides=("there", "now"))):
            raise CacheError(f"{path} holds another cache: {change}. Choose another folder, or remove this one")
        write_json(file, manifest)

    def shards(self, dataset: str, windows: int) -> list[int]:
        """The shards of a dataset that are not there yet."""
        return [i for i in range(-(-windows // self._per_shard)) if not self._file(dataset, i, ".json").is_file()]

    def windows_of(self, shard: int, windows: int) -> range:
        """The windows of a shard."""
        return range(shard * self._per_shard, min((shard + 1) * self._per_shard, windows))

    def write_shard(self, dataset: str, shard: int, rows: Iterator[dict | str]) -> dict:
        """A row per window, or the reason why it is unreadable. All of the shard or nothing. Returns its JSON."""
        partial = self._file(dataset, shard, f".partial-{os.getpid()}")
        digest, bad, count = hashlib.sha256(), {}, 0
        partial.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayRecordWriter(str(partial), _OPTIONS)
        for row in rows:
            if isinstance(row, str):
                bad[str(shard * self._per_shard + count)] = row
                record = b""
            else:
                record = b"".join(np.asarray(row[name], dtype).tobytes() for name, (_, dtype) in self._fields.items())
            writer.write(record)
            digest.update(record)
            count += 1
        writer.close()
        about = {"records": count, "bytes": partial.stat().st_size, "sha256": digest.hexdigest(), "bad": bad}
        partial.replace(self._file(dataset, shard, ".array_record"))
        write_json(self._file(dataset, shard, ".json"), about)
        return about

    def write_texts(self, features: Iterator[np.ndarray]) -> None:
        """features: [tokens, width] of each distinct prompt, without padding."""
        partial = self.path / f"texts.partial-{os.getpid()}"
        writer = ArrayRecordWriter(str(partial), _OPTIONS)
        for each in features:
            writer.write(np.asarray(each, bfloat16).tobytes() or b"\0")  # an empty prompt has no tokens
        writer.close()
        partial.replace(self.path / "texts.array_record")

    def write_index(self, dataset: str, **arrays: np.ndarray) -> None:
        """lengths int64 and rates float64 of all episodes, kept as `Source.kept`, text int64: the prompt of each, -1
        where it has none."""
        (self.path / dataset).mkdir(parents=True, exist_ok=True)
        save_file(arrays, self.path / dataset / "index.safetensors")

    def finish(self, windows: dict[str, int]) -> bool:
        """Writes _SUCCESS where every shard of {dataset: windows} is there, from whichever process."""
        if any(self.shards(name, count) for name, count in windows.items()):
            return False
        write_json(self.path / "_SUCCESS", {
            name: {str(i): json.loads(self._file(name, i, ".json").read_text())
                   for i in range(-(-count // self._per_shard))} for name, count in windows.items()})
        return True

    def _file(self, dataset: str, shard: int, suffix: str) -> Path:
        return shard_file(self.path, dataset, shard, suffix)


def save_encoders(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """encoders.safetensors; arrays: "video.NAME" and "text.NAME"."""
    partial = path / f"encoders.partial-{os.getpid()}"
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, partial)
    partial.replace(path / "encoders.safetensors")
