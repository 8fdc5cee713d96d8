"""Reads a latent cache: windows after the frozen encoders, which training reads instead of video.

    manifest.json            identity: what the numbers depend on; a run that would make others is refused
    encoders.safetensors     the encoders' arrays, as PART.NAME
    statistics.json          the statistics that state and actions are normalised by
    texts.array_record       features of every distinct prompt, bfloat16 [its tokens, width]
    NAME/index.safetensors   lengths and rates of all episodes of a dataset, where windows may begin in them, and the
                             prompts of each training episode
    NAME/shard-I.array_record   window i is record i % W of shard i // W; empty where the window was unreadable
    NAME/shard-I.json        the shard's size, hash and unreadable windows; written last
    _SUCCESS                 everything is there: the content of all shard-I.json, sizes and hashes of the other files

A window has the same number here and in the video pipeline, so that order, resuming and the replacement of unreadable
windows are the same. The folder may be an address for fsspec (gs://, s3://, ...). array_record's reader knows paths
alone, so a shard is copied to TMPDIR when a window of it is first asked for (`files.local_copy` bounds what they take).
"""

import contextlib
import copy
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines.episode import BadEpisode, Episode, Source
from data_pipelines.json_difference import first_difference
from data_pipelines.robots.embodiments import name_in_files, renamed
from data_pipelines.samples import ORIGIN, SampleMaker
from data_pipelines.statistics import STATISTICS
from data_pipelines.storage import files
from data_pipelines.storage.lru import Lru, checked_identity, reset_identities
from world_model import kinds

FORMAT = 2  # how the files are laid out
CONTENTS = 1  # what the stored numbers mean: raised by hand when the code makes other ones of the same recordings
_CONTENTS_OF_CODE = {"8ebc1564bd8ff3cb": 1}  # manifests written before 2026-11-28 hold a hash of source files instead
_LIMITS = re.compile(r""", low=[^,)]*, high=[^,)]*, max_speed=[^,)]*, moves=(None|'[^']*'|"[^"]*")""")  # of a Dimension
TEXTS = "texts.array_record"
ABOUT = kinds.fields({"records": kinds.whole(), "bytes": kinds.whole(high=2**63), "sha256": kinds.text},
                     required=("bytes", "sha256"))  # of a file
ABOUT_SHARD = kinds.fields({"records": kinds.whole(), "bytes": kinds.whole(high=2**63), "sha256": kinds.text,
                            "bad": kinds.map_of(kinds.text)}, required=("records", "bytes", "sha256", "bad"))
_DATASET = kinds.fields({"embodiment": kinds.text, "robot": kinds.text}, required=("embodiment", "robot"))
_MANIFEST = kinds.fields({"identity": kinds.fields(
    {"code": kinds.either(kinds.whole(), kinds.text), "datasets": kinds.map_of(_DATASET)}), "encoders": kinds.text,
    "windows_per_shard": kinds.whole(1), "windows": kinds.map_of(kinds.whole())},
    required=("identity", "windows_per_shard"))
_SUCCESS = kinds.fields({"format": kinds.whole(), "files": kinds.map_of(ABOUT),
                         "shards": kinds.map_of(kinds.map_of(ABOUT_SHARD))}, required=("files", "shards"))
_INDEX = {"lengths": ("i", 1), "rates": ("f", 1), "kept": ("i", 2), "text": ("i", 1)}  # name -> kind of number, axes
_ORDER = ("latents", "first_latents", "image_features", "frame_mask", "state", "actions", "action_mask")


class CacheError(OSError):
    """A latent cache that is unfinished, damaged, or another run's."""


@contextlib.contextmanager
def _as_cache_error() -> Iterator[None]:
    """A file of a cache that cannot be read, as its reader's sentence says, is a CacheError."""
    try:
        yield
    except ValueError as error:
        raise CacheError(str(error)) from error


def record_fields(spec: dict[str, tuple]) -> dict[str, tuple]:
    """name -> (shape, dtype) of what a record holds, in its order: the fields of `spec` but the text's features, which
    stand once for each prompt, and those that say where a row comes from. Fields without a place in _ORDER follow."""
    order = dict.fromkeys((*_ORDER, *spec))
    return {name: spec[name] for name in order if name in spec and name not in ("text_features", *ORIGIN)}


def record_bytes(spec: dict[str, tuple]) -> int:
    """The size of a record in bytes."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in record_fields(spec).values())


def parse_manifest(data: bytes, where: str) -> dict:
    """manifest.json with a `comparable` identity."""
    manifest = kinds.parse(data, _MANIFEST, where)
    return manifest | {"identity": comparable(manifest["identity"])}


def comparable(identity: dict) -> dict:
    """The identity as all versions of this code would have written it: a number for a hash of source files, robots by
    their oldest names and without what they may be sent, which changes nothing that is stored."""
    found = copy.deepcopy(identity)
    if found.get("code") in _CONTENTS_OF_CODE:
        found["code"] = _CONTENTS_OF_CODE[found["code"]]
    for dataset in found.get("datasets", {}).values():
        dataset["embodiment"] = name_in_files(dataset["embodiment"])
        for old, new in renamed().items():
            dataset["robot"] = dataset["robot"].replace(f"(name={new!r},", f"(name={old!r},")
        dataset["robot"] = _LIMITS.sub("", dataset["robot"])
    return found


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
        written = files.read_json(f"{self.path}/_SUCCESS", _SUCCESS)
        if (found := written.get("format", 1)) != FORMAT:
            raise CacheError(f"data.cache = {self.path} has format {found}, this code reads {FORMAT}: make it again")
        self._files = {f"{self.path}/{name}": about for name, about in written["files"].items()} | {
            self._shard(dataset, int(shard)): about for dataset, shards in written["shards"].items()
            for shard, about in shards.items()}
        self.manifest = parse_manifest(self._checked("manifest.json"), f"{self.path}/manifest.json")
        if change := first_difference(self.manifest["identity"], comparable(identity), sides=("cache", "this run")):
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

    def source(self, dataset: str, original: Callable[[], Source]) -> "CachedSource":
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
            return _checked_index(files.tensors_of(self._checked(index_name(dataset)), file), file)


class CachedSource:
    """`Source` whose lengths, rates and stretches come from a cache; recordings are opened only where one is asked
    for."""

    def __init__(self, lengths: np.ndarray, rates: np.ndarray, kept: np.ndarray, original: Callable[[], Source]):
        self._lengths, self._rates, self._kept, self._original = lengths, rates, kept, original

    def lengths(self) -> np.ndarray:
        """The steps of each episode, int64 [episodes]."""
        return self._lengths

    def rates(self) -> np.ndarray:
        """The steps per second of each episode, float64 [episodes]."""
        return self._rates

    def kept(self) -> np.ndarray:
        """The stretches where windows may begin, as `Source` says."""
        return self._kept

    @property
    def files(self) -> list[str]:
        """Those of the recordings."""
        return self._opened.files

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


def _checked_index(index: dict[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """Returns the index. Raises ValueError where an array is missing, of another kind, or holds what cannot be."""
    for name, (kind, axes) in _INDEX.items():
        if name not in index or index[name].dtype.kind != kind or index[name].ndim != axes:
            found = f"{index[name].dtype} {index[name].shape}" if name in index else "none"
            raise ValueError(f"{file}: {name}: expected numbers of kind {kind!r} on {axes} axes, found {found}")
    if not (index["lengths"] >= 0).all() or not np.isfinite(index["rates"]).all() or not (index["rates"] > 0).all():
        raise ValueError(f"{file}: lengths below 0, or rates that are not above 0")
    return index


def shard_file(path: str, dataset: str, shard: int, suffix: str) -> str:
    """The path of a shard's file: PATH/NAME/shard-00003SUFFIX."""
    return f"{path}/{dataset}/shard-{shard:05d}{suffix}"


def index_name(dataset: str) -> str:
    """The name of a dataset's index in the cache: NAME/index.safetensors."""
    return f"{dataset}/index.safetensors"


def load_encoders(path: str, parts: Iterable[str]) -> dict:
    """Reads the encoders' arrays of a cache, {part: {name: array}}, as a checkpoint keeps them. parts: of the run's
    encoders; one without arrays is not in the file."""
    found: dict[str, dict] = {part: {} for part in parts}
    file = f"{path}/encoders.safetensors"
    for name, value in files.tensors_of(files.read_bytes(file), file).items():
        part, _, rest = name.partition(".")
        found.setdefault(part, {})[rest] = value
    return found


def arrays_hash(arrays: dict[str, np.ndarray]) -> str:
    """A hash of the arrays' names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {value.shape} {value.dtype}".encode() + value.tobytes())
    return digest.hexdigest()[:16]
