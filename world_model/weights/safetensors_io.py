"""Sharded safetensors directories: a streaming writer, an atomic commit and a strict lazy reader.

Layout (the one PyTorch hubs use): model-00001-of-0000N.safetensors and model.safetensors.index.json with
{"metadata": {"total_size": bytes, "hashes": {key: hash}}, "weight_map": {key: file}}. Hashes are ours
(world_model/hashing.py), and checked where they are there. "model" is the stem, which some hubs call otherwise; a
reader also takes one file model.safetensors without an index.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from world_model import hashing, kinds
from world_model.weights.tensor_files import PICKLES, SAFE, WeightsError, open_tensors, read_json, read_tensor

SHARD_BYTES = 5_000_000_000
Header = tuple[tuple[int, ...], str]  # shape, and dtype in safetensors' own spelling ("BF16")


@contextlib.contextmanager
def atomic_directory(target: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary directory beside `target` that becomes `target` only if the body succeeds.

    Raises FileExistsError when `target` is there and not empty; nothing is ever overwritten.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} exists and is not empty; give another directory or remove it")
    partial = target.with_name(f"{target.name}.partial-{secrets.token_hex(8)}")  # a pid is 1 in every container
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write(directory: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES,
          stem: str = "model") -> None:
    """Writes shards of at most `shard_bytes` (a larger tensor gets a shard of its own) and their index.

    Holds one shard of `tensors` in memory. The index comes last: a directory without it is not an export. Raises
    OSError where a file cannot be written.
    """
    shards, total, hashes = [], 0, {}
    for shard in _shards(tensors, shard_bytes):
        hashes |= hashing.hashes(shard)
        name = f"{stem}-{len(shards) + 1:05d}.safetensors"
        try:
            save_file(shard, directory / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{directory / name} cannot be written: {error}") from error
        shards.append((name, list(shard)))
        total += sum(x.nbytes for x in shard.values())
    weight_map = {}
    for i, (name, keys) in enumerate(shards):
        final = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / name).chmod(0o644)  # the package writes files that only their owner may read
        (directory / name).rename(directory / final)
        weight_map.update(dict.fromkeys(keys, final))
    index = {"metadata": {"total_size": total, "hashes": hashes}, "weight_map": weight_map}
    (directory / index_name(stem)).write_text(json.dumps(index, indent=1))


def index_name(stem: str = "model", suffix: str = SAFE) -> str:
    """The name of the file that says which shard holds what."""
    return f"{stem}{suffix}.index.json"


def _shards(tensors: Iterable[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    shard, size, seen = {}, 0, set()
    for key, x in tensors:
        if key in seen:
            raise WeightsError(f"{key}: written twice")
        if shard and size + x.nbytes > limit:
            yield shard
            shard, size = {}, 0
        seen.add(key)
        shard[key] = np.ascontiguousarray(x)
        size += x.nbytes
    if shard:
        yield shard


class Weights(Mapping):
    """A read-only mapping from keys to numpy arrays over a weights directory. A tensor is read when it is asked for,
    and nothing of it stays in memory: its file is mapped for that long alone.

    Everything that headers can tell is checked at construction: shards present and whole, the index and the shards'
    contents the same. `headers` keeps what they say by key. With more than one stem the files of each are read, and no
    key may be in two of them. allow_pickle: take torch's files too.
    """

    def __init__(self, directory: str | os.PathLike, *stems: str, allow_pickle: bool = False):
        self.directory, self._allow_pickle = Path(directory), allow_pickle
        self.headers: dict[str, Header] = {}
        self._weight_map: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        for stem in stems or ("model",):
            found = self._index(stem)
            if twice := sorted(found.keys() & self._weight_map.keys()):
                raise WeightsError(f"{self.directory}: {twice[0]}: in {self._weight_map[twice[0]]} and in "
                                   f"{found[twice[0]]}; a tensor stands in one file")
            self._weight_map |= found
        for name in sorted(set(self._weight_map.values())):
            listed = {key for key, shard in self._weight_map.items() if shard == name}
            headers = self._read_header(name)
            _same_keys(self.directory / name, expected=listed, found=set(headers))
            self.headers |= headers

    @property
    def files(self) -> list[Path]:
        """The paths of the shards, sorted."""
        return [self.directory / name for name in sorted(set(self._weight_map.values()))]

    def path_of(self, key: str) -> Path:
        """The path of the shard that holds a tensor."""
        return self.directory / self._weight_map[key]

    def _index(self, stem: str) -> dict[str, str]:
        for suffix in (SAFE, *(PICKLES if self._allow_pickle else ())):
            path, single = self.directory / index_name(stem, suffix), f"{stem}{suffix}"
            if path.exists():
                shards, hashes = _read_index(path)
                self._hashes |= hashes
                return shards
            if (self.directory / single).exists():
                return dict.fromkeys(self._read_header(single), single)
        pickles = sorted(p for p in self.directory.glob("*") if p.suffix in PICKLES)
        if pickles and not self._allow_pickle:
            open_tensors(pickles[0])  # says why not
        raise WeightsError(f"{self.directory / index_name(stem)}: missing; {self.directory} is not a (whole) weights "
                           "directory")

    def _read_header(self, name: str) -> dict[str, Header]:
        with self._open(name) as file:
            views = {key: file.get_slice(key) for key in sorted(file.keys())}
            return {key: (tuple(view.get_shape()), view.get_dtype()) for key, view in views.items()}

    def _open(self, name: str):
        path = self.directory / name
        if not path.exists():
            keys = [key for key, shard in self._weight_map.items() if shard == name]
            raise WeightsError(f"{path}: shard missing; its index expects {len(keys)} keys in it, first {keys[0]}")
        return open_tensors(path, self._allow_pickle)

    def __getitem__(self, key: str) -> np.ndarray:
        with self._open(self._weight_map[key]) as file:
            found = read_tensor(file, key, self.path_of(key))
        if key in self._hashes and (value := hashing.hashes({key: found})[key]) != self._hashes[key]:
            raise WeightsError(f"{self.path_of(key)}: {key} is damaged: its hash is {value}, and {self._hashes[key]} "
                               "was written; fetch or export it again")
        return found

    def __iter__(self):
        return iter(self._weight_map)

    def __len__(self):
        return len(self._weight_map)

    def check(self, expected: Mapping[str, Header]) -> None:
        """Raises WeightsError unless keys, shapes and dtypes are exactly the expected ones. Reads headers alone."""
        _same_keys(self.directory, expected=set(expected), found=set(self._weight_map))
        for key, (shape, dtype) in expected.items():
            found = self.headers[key]
            if found != (tuple(shape), dtype):
                raise WeightsError(f"{self.path_of(key)}: {key}: expected {dtype} "
                                   f"{tuple(shape)}, found {found[1]} {found[0]}")


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The shard of every key, and the hashes of those that have one, as an index file says. Shards lie beside it,
    under plain names; they may be links."""
    index = read_json(path, _INDEX)
    return index["weight_map"], (index.get("metadata") or {}).get("hashes", {})


def _plain_name(value) -> str:
    """A name of a file, without a folder."""
    plain = isinstance(value, str) and os.path.basename(value) == value and value not in ("", ".", "..") \
        and value.isprintable() and len(value) < 200
    return "" if plain else f" = {value!r:.99}: expected a plain name of a file beside the index"


_INDEX = kinds.fields({"weight_map": kinds.map_of(_plain_name), "metadata": kinds.optional(kinds.fields(
    {"hashes": kinds.map_of(kinds.text)}))}, required=("weight_map",))


def _same_keys(where: Path, expected: set[str], found: set[str]) -> None:
    if expected != found:
        raise WeightsError(f"{where}: missing keys {sorted(expected - found)}, "
                           f"unexpected keys {sorted(found - expected)}")
