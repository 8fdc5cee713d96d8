"""Reads frames of video files; decoders and packet tables of the files read last stay open."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from data_pipelines.storage.lru import Lru, checked_identity
from data_pipelines.video.decoder import VideoReader
from data_pipelines.video.packets import PacketTable

_tables = Lru(2**28, size=lambda table: 36 * len(table.pts))  # by file; the limit is in bytes
_idle = Lru(32, drop=lambda reader: reader.close())  # open decoders by (file, number)


@contextlib.contextmanager
def reader(file: str) -> Iterator[tuple[VideoReader, PacketTable]]:
    """Yields an open reader that no other thread uses, one of those kept open if there is any, and the file's packets.

    Raises BadEpisode as `VideoReader` does, and where the file was replaced since it was first read.
    """
    known = checked_identity(file)
    opened = _idle.take(lambda name: name[0] == known) or VideoReader(file)
    try:
        yield opened, _tables.get(known) or _tables.put(known, opened.list_packets())
    except BaseException:
        opened.close()
        raise
    _idle.put((known, id(opened)), opened)


def read(file: str, choose: Callable[[PacketTable], np.ndarray]) -> np.ndarray:
    """Reads the frames whose numbers, in the order shown, `choose` picks from a file's table: uint8 [n, H, W, 3].

    Raises BadEpisode where `choose` does, or a frame cannot be decoded.
    """
    with reader(file) as (opened, table):
        chosen = choose(table)
        distinct, back = np.unique(chosen, return_inverse=True)
        frames = opened.read(table, distinct)
        return frames if np.array_equal(distinct, chosen) else frames[back]


def read_at(file: str, times: np.ndarray, *, within: float) -> np.ndarray:
    """Reads the frames nearest to `times`, in seconds since the file's first frame: uint8 [n, H, W, 3].

    Raises BadEpisode where the nearest is further than `within` seconds off, or one cannot be decoded.
    """
    return read(file, lambda table: table.nearest_within(times, within, file))
