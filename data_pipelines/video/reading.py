"""Reads exactly the frames that a window asks for out of compressed video.

Packets are listed once per file (times and key frames; nothing is decoded). From that list follows, by arithmetic,
which frame is nearest to a time and which packets it needs: those from the key frame before it up to itself. These
packets and no others reach the decoder, and of the decoded frames only the asked ones are turned into pixels.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator

import av
import fsspec
import numpy as np

from data_pipelines.episode import BadEpisode
from data_pipelines.storage.lru import Lru, checked_identity

_SEEK_BEYOND = 64  # unneeded packets in a row from which seeking is cheaper than reading past them
_tables = Lru(4096)  # by file; 18 bytes a frame
_idle = Lru(32, drop=lambda reader: reader.close())  # open decoders by (file, number)


@dataclasses.dataclass(frozen=True)
class PacketTable:
    """The packets of a file's first video stream in decoding order."""

    pts: np.ndarray  # int64 [packets], presentation time in units of `unit`
    dts: np.ndarray  # int64 [packets], decoding time, which seeking goes by
    key: np.ndarray  # bool [packets]: decoding can begin here
    shown: np.ndarray  # bool [packets]: False where an edit list cuts the frame away
    unit: float  # seconds

    @property
    def order(self) -> np.ndarray:
        """The packets in the order in which they are shown, int64 [frames]."""
        frames = np.flatnonzero(self.shown)
        return frames[np.argsort(self.pts[frames], kind="stable")]

    @property
    def times(self) -> np.ndarray:
        """The seconds of each frame since the file's first, float64 [frames], ascending."""
        pts = self.pts[self.order]
        return (pts - pts[0]) * self.unit

    def nearest(self, times: np.ndarray) -> np.ndarray:
        """The number, in the order shown, of the frame that is nearest to each time: int64 like `times`."""
        known = self.times
        right = np.searchsorted(known, times).clip(0, len(known) - 1)
        left = np.maximum(right - 1, 0)
        return np.where(times - known[left] <= known[right] - times, left, right)

    def needed(self, packets: np.ndarray) -> np.ndarray:
        """True on what must be decoded for the frames of `packets`, bool [packets].

        A frame that is shown before the key frame that it follows (a leading picture) needs the key frame before that.
        """
        keys, out = np.flatnonzero(self.key), np.zeros(len(self.pts), np.bool_)
        for packet in np.unique(packets):
            row = np.searchsorted(keys, packet, side="right") - 1
            while row > 0 and self.pts[keys[row]] > self.pts[packet]:
                row -= 1
            out[keys[row] if row >= 0 else 0:packet + 1] = True
        return out


class VideoReader:
    """One open file. One thread at a time may use it: see `reader`."""

    def __init__(self, file: str):
        """file: a path, or an address for fsspec. Raises BadEpisode where it holds no video that can be opened."""
        self.file, self._handle, self._container = file, None, None
        try:
            self._handle = fsspec.open(file, "rb").open() if "://" in file else None
            self._container = av.open(self._handle or file)
        except (av.FFmpegError, OSError, ValueError) as error:
            self.close()
            raise BadEpisode(f"{file}: {_unreadable(file) or f'cannot be opened: {error}'}") from error
        if not self._container.streams.video:
            self.close()
            raise BadEpisode(f"{file}: no video stream")
        self.stream = self._container.streams.video[0]
        if self.stream.codec_context is None:
            self.close()
            raise BadEpisode(f"{file}: no decoder for its video stream")
        self.stream.codec_context.thread_count = 1  # windows are decoded side by side, not frames
        self.stream.codec_context.options = {"err_detect": "explode"}  # no guessed pixels
        self._convert = av.video.reformatter.VideoReformatter()  # setting one up costs more than a small frame

    @property
    def header(self) -> tuple[int, float]:
        """The (frames, frames per second) that the container promises; 0 where it does not say."""
        rate = float(self.stream.average_rate or 0)
        seconds = (float(self.stream.duration * self.stream.time_base) if self.stream.duration
                   else (self._container.duration or 0) / av.time_base)  # Matroska knows that of the whole file alone
        return self.stream.frames or round(seconds * rate), rate

    def list_packets(self) -> PacketTable:
        """Lists the packets that can be read: of a file cut short those that there are. Raises BadEpisode where they
        carry no times."""
        rows = []
        with contextlib.suppress(av.FFmpegError):
            for packet in self._packets(None):
                dts = packet.pts if packet.dts is None else packet.dts
                rows.append((packet.pts, dts, packet.is_keyframe, not packet.is_discard))
        if not any(shown for *_, shown in rows) or any(pts is None for pts, *_ in rows):
            raise BadEpisode(f"{self.file}: cannot be decoded: it holds no frames with time stamps")
        pts, dts, key, shown = (np.array(column) for column in zip(*rows))
        return PacketTable(pts, dts, key, shown, float(self.stream.time_base))

    def read(self, table: PacketTable, frames: np.ndarray) -> np.ndarray:
        """Decodes frames by their numbers in the order shown: uint8 [n, H, W, 3], turned upright as the file says.

        Raises BadEpisode where one cannot be decoded, or is damaged as far as the decoder can tell.
        """
        packets, found = table.order[frames], {}
        wanted = set(table.pts[packets].tolist())
        try:
            for frame in self._decode(table, table.needed(packets)):
                if frame.pts in wanted and not frame.is_corrupt:
                    pixels = self._convert.reformat(frame, format="rgb24").to_ndarray()
                    found[frame.pts] = np.rot90(pixels, frame.rotation // 90) if frame.rotation else pixels
        except (av.FFmpegError, ValueError) as error:
            raise BadEpisode(f"{self.file}: cannot be decoded: {error}") from error
        pts = table.pts[packets].tolist()
        for frame, at in zip(frames, pts):
            if at not in found:
                raise BadEpisode(f"{self.file}: frame {frame} of {len(table.order)} is damaged: cannot be decoded")
        return np.stack([found[at] for at in pts])

    def _decode(self, table: PacketTable, needed: np.ndarray) -> Iterator[av.VideoFrame]:
        """Decodes the needed packets and no others; each unbroken run of them begins with a key frame."""
        context, packets, at = self.stream.codec_context, iter(()), len(needed)  # the first run seeks its place
        for first, end in np.flatnonzero(np.diff(needed, prepend=False, append=False)).reshape(-1, 2).tolist():
            if not 0 <= first - at <= _SEEK_BEYOND:
                packets, at = self._seek(table, first)
            context.flush_buffers()
            for packet in packets:
                at += 1
                if at > first:
                    yield from context.decode(packet)
                if at == end:
                    break
            yield from context.decode(None)
        context.flush_buffers()

    def _seek(self, table: PacketTable, first: int) -> tuple[Iterator[av.Packet], int]:
        """The packets from one on that is `first` or before it, and the number of that one."""
        number = {pts: i for i, pts in enumerate(table.pts.tolist())}
        for goal in (table.dts[first], table.dts[first] - round(2 / table.unit), None):
            packets = self._packets(None if goal is None else int(goal))
            head = next(packets, None)
            if head is not None and number.get(head.pts, len(number)) <= first:
                return itertools.chain((head,), packets), number[head.pts]
        raise BadEpisode(f"{self.file}: cannot be decoded: the file has changed since its packets were listed")

    def _packets(self, dts: int | None) -> Iterator[av.Packet]:
        """The packets from the key frame before `dts` on, or from the file's beginning."""
        if dts is None:
            self._container.seek(0)
        else:
            self._container.seek(dts, stream=self.stream)
        return (p for p in self._container.demux(self.stream) if p.size and not p.is_corrupt)

    def close(self) -> None:
        """Closes the file; may be called twice."""
        for part in (self._container, self._handle):
            if part is not None:
                part.close()


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


def read_at(file: str, times: np.ndarray, *, within: float, frames: int | None = None) -> np.ndarray:
    """Reads the frames nearest to `times`, in seconds since the file's first frame: uint8 [n, H, W, 3].

    Raises BadEpisode where the nearest is further than `within` seconds off, one cannot be decoded, or the file does
    not hold as many `frames` as it should.
    """
    with reader(file) as (opened, table):
        if frames is not None and len(table.order) != frames:
            raise BadEpisode(f"{file}: {len(table.order)} frames can be read, the table has {frames} steps")
        shown = table.nearest(times)
        off = np.abs(table.times[shown] - times)
        if off.max() > within:
            worst = int(off.argmax())
            raise BadEpisode(f"{file}: cannot be decoded: no frame at {times[worst]:.3f} s; the nearest of its "
                             f"{len(table.order)} frames is at {table.times[shown[worst]]:.3f} s. The file is cut "
                             f"short, or does not belong to this recording")
        distinct, back = np.unique(shown, return_inverse=True)
        frames = opened.read(table, distinct)
        return frames if np.array_equal(distinct, shown) else frames[back]


def _unreadable(file: str) -> str:
    """Why a local file cannot be read at all; empty where that is not the reason."""
    if "://" in file:
        return ""
    if not os.path.isfile(file):
        return "no such file"
    return "" if os.path.getsize(file) else "the file is empty"
