"""Reads records of a split by number, from array_record or tfrecord shards, without TensorFlow (extra for the latter:
tfrecord). Both formats carry checksums, and a record that does not match its own is an error."""

import bisect
import itertools
import struct
from collections.abc import Sequence

import numpy as np

from data_pipelines.storage import files
from data_pipelines.storage.lru import Lru, checked_identity

_readers = Lru(64)  # array_record readers by shard; closed when the last reading thread lets one go
_offsets = Lru(4096)  # where records begin in a tfrecord shard
_HEAD, _CHECK = 12, 4  # bytes of a record's length with its checksum, and of the content's checksum


class Records:
    """Random access over shards. Raises RuntimeError, ValueError, IndexError or OSError where a record cannot be
    read."""

    def __init__(self, shards: Sequence[str], lengths: Sequence[int], kind: str):
        """lengths: the number of records in each shard; kind: "array_record" or "tfrecord"."""
        if kind not in _READ:
            raise ValueError(f"records of format {kind!r} cannot be read; expected one of {sorted(_READ)}")
        self.shards, self._read = list(shards), _READ[kind]
        self._ends = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[str, int]:
        """The (shard, number in it) of a record."""
        shard = bisect.bisect_right(self._ends, index)
        return self.shards[shard], index - (self._ends[shard - 1] if shard else 0)

    def __getitem__(self, index: int) -> bytes:
        return self._read(*self.place(index))


def _array_record(shard: str, number: int) -> bytes:
    from array_record.python.array_record_module import ArrayRecordReader

    local = files.local_copy(shard)
    name = (*checked_identity(shard), local)  # a copy is of one version, and may be made anew
    reader = _readers.get(name) or _readers.put(name, ArrayRecordReader(local, options="readahead_buffer_size:0"))
    return reader.read([number])[0]


def _tfrecord(shard: str, number: int) -> bytes:
    """Reads one record. The offsets of all records are found once, by going from length to length."""
    name = checked_identity(shard)
    with files.open_file(shard) as opened:
        offsets = _offsets.get(name)
        if offsets is None:
            offsets = _offsets.put(name, _tfrecord_offsets(opened, shard))
        if number >= len(offsets) - 1:
            raise ValueError(f"{shard} holds {len(offsets) - 1} whole records; number {number} is cut off or missing")
        begin, end = int(offsets[number]) + _HEAD, int(offsets[number + 1])
        opened.seek(begin)
        stored = opened.read(end - begin)
    data, check = stored[:-_CHECK], struct.unpack("<I", stored[-_CHECK:])[0]
    if _masked_crc(data) != check:
        raise ValueError(f"{shard}: record {number} does not match its checksum")
    return data


def _tfrecord_offsets(opened, shard: str) -> np.ndarray:
    """Where each whole record begins, and where the last one ends: int64 [whole records + 1]."""
    size, found = opened.seek(0, 2), [0]
    while found[-1] + _HEAD <= size:
        opened.seek(found[-1])
        head = opened.read(_HEAD)
        length, check = struct.unpack("<QI", head)
        if _masked_crc(head[:8]) != check:
            raise ValueError(f"{shard}: the length of record {len(found) - 1} is damaged, and with it every one after")
        end = found[-1] + _HEAD + length + _CHECK
        if end > size:
            break
        found.append(end)
    return np.array(found, np.int64)


def _masked_crc(data: bytes) -> int:
    """The CRC-32C of `data`, rotated and shifted as TFRecord stores it."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


_READ = {"array_record": _array_record, "tfrecord": _tfrecord}
