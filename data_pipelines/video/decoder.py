"""Reads exactly the frames that a window asks for out of compressed video.

Packets are listed once per file (video/packets.py). Those that a frame needs and no others reach the decoder, and of
the decoded frames only the asked ones are turned into pixels. What comes back is what a decode of the whole file gives.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator

import av
import numpy as np

from data_pipelines.episode import BadEpisode
from data_pipelines.storage import files
from data_pipelines.video.bitstream import packet_inspector
from data_pipelines.video.packets import PacketTable

_SEEK_BEYOND = 64  # unneeded packets in a row from which seeking is cheaper than reading past them


class VideoReader:
    """One open file. One thread at a time may use it: see `reading.reader`."""

    def __init__(self, file: str, lenient: bool = False):
        """file: a path, or an address for fsspec; lenient: decode as players do, around whatever is missing or damaged.
        Raises BadEpisode where it holds no video that can be opened."""
        self.file, self._lenient, self._handle, self._container = file, lenient, None, None
        try:
            self._handle = files.open_file(file) if files.is_remote(file) else None
            self._container = av.open(self._handle or f"file:{file}")  # a name with a colon is no protocol
        except (av.FFmpegError, OSError, ValueError) as error:
            self.close()
            raise BadEpisode(f"{file}: {_unreadable(file) or f'cannot be opened: {error}'}") from error
        if not self._container.streams.video:
            self.close()
            raise BadEpisode(f"{file}: no video stream")
        self.stream = _main_stream(self._container.streams.video)
        if self.stream.codec_context is None:
            self.close()
            raise BadEpisode(f"{file}: no decoder for its video stream")
        self.stream.codec_context.thread_count = 1  # windows are decoded side by side, not frames
        self.stream.codec_context.options = {} if lenient else {"err_detect": "explode"}  # no guessed pixels
        self._convert = av.video.reformatter.VideoReformatter()  # setting one up costs more than a small frame

    def list_packets(self) -> PacketTable:
        """Lists the packets that can be read: of a file cut short those that there are. Raises BadEpisode where they
        carry no times."""
        rows, inspect = [], packet_inspector(self.stream.codec_context)
        with contextlib.suppress(av.FFmpegError):
            for packet in self._packets(None):
                dts = packet.pts if packet.dts is None else packet.dts
                key = packet.is_keyframe
                start, clean, shows = inspect(memoryview(packet)) if inspect else (key, key, True)
                rows.append((packet.pts, dts, start, clean, shows and not packet.is_discard))
        if not rows or any(pts is None for pts, *_ in rows):
            raise BadEpisode(f"{self.file}: cannot be decoded: it holds no frames with time stamps")
        pts, dts, start, clean, shown = (np.array(column) for column in zip(*rows))
        lost = max(0, _packet_count(self.stream) - len(rows))
        table = PacketTable(pts, dts, start, clean, shown, self.stream.time_base, lost)
        shown[:table.head] &= np.isin(pts[:table.head], self._shown_first(table.head))
        if not shown.any():
            raise BadEpisode(f"{self.file}: cannot be decoded: it holds no frame that can be shown")
        return table

    def _shown_first(self, count: int) -> list[int]:
        """The times of the frames that a player shows of the first `count` packets."""
        if not count:
            return []
        with contextlib.closing(VideoReader(self.file, lenient=True)) as player:
            packets = itertools.islice(player._packets(None), count)
            return [frame.pts for packet in (*packets, None) for frame in player._decode_packet(packet, tolerant=True)]

    def read(self, table: PacketTable, frames: np.ndarray) -> np.ndarray:
        """Decodes frames by their numbers in the order shown: uint8 [n, H, W, 3], turned upright as the file says.

        Raises BadEpisode where one cannot be decoded, is damaged as far as the decoder can tell, or has another size.
        """
        packets = table.order[frames]
        startable = table.has_start(packets)
        try:
            found = self._complete_frames(table, packets[startable])
            if not startable.all():
                with contextlib.closing(VideoReader(self.file, lenient=True)) as player:
                    found |= player._frames(table, packets[~startable], table.needed(packets[~startable]))
        except (av.FFmpegError, ValueError) as error:
            raise BadEpisode(f"{self.file}: cannot be decoded: {error}") from error
        pts = table.pts[packets].tolist()
        for frame, at in zip(frames, pts):
            if at not in found:
                raise BadEpisode(f"{self.file}: frame {frame} of {len(table.order)} is damaged: cannot be decoded")
            if found[at].shape != found[pts[0]].shape:
                sizes = [f"{height} x {width}" for height, width, _ in (found[at].shape, found[pts[0]].shape)]
                raise BadEpisode(f"{self.file}: the picture changes its size inside a window: frame {frame} is "
                                 f"{sizes[0]}, frame {frames[0]} {sizes[1]}")
        return np.stack([found[at] for at in pts])

    def _complete_frames(self, table: PacketTable, packets: np.ndarray) -> dict[int, np.ndarray]:
        """`_frames`, from a clean start where another does not give all of them."""
        with contextlib.suppress(av.FFmpegError):
            found = self._frames(table, packets, table.needed(packets))
            if len(found) == len(packets):
                return found
        return self._frames(table, packets, table.needed(packets, clean_only=True))

    def _frames(self, table: PacketTable, packets: np.ndarray, needed: np.ndarray) -> dict[int, np.ndarray]:
        """{presentation time: upright pixels} of those frames that come out of the decoder undamaged."""
        wanted, found = set(table.pts[packets].tolist()), {}
        for frame in self._decode(table, needed):
            if frame.pts in wanted and not frame.is_corrupt:
                pixels = self._convert.reformat(frame, format="rgb24").to_ndarray()
                found[frame.pts] = _upright(pixels, frame.side_data.get("DISPLAYMATRIX"))
        return found

    def _decode(self, table: PacketTable, needed: np.ndarray) -> Iterator[av.VideoFrame]:
        """Decodes the needed packets and no others; each unbroken run of them begins where decoding can."""
        context, packets, at = self.stream.codec_context, iter(()), len(needed)  # the first run seeks its place
        for first, end in np.flatnonzero(np.diff(needed, prepend=False, append=False)).reshape(-1, 2).tolist():
            if not 0 <= first - at <= _SEEK_BEYOND:
                packets, at = self._seek(table, first)
            context.flush_buffers()
            exact = table.exact(first)
            for packet in packets:
                at += 1
                if at > first:  # what comes before `exact`, or leads it, may refer to pictures that are not there
                    early = at <= exact or table.pts[at - 1] < table.pts[exact]
                    yield from self._decode_packet(packet, tolerant=early)
                if at == end:
                    break
            yield from self._decode_packet(None)
        context.flush_buffers()

    def _decode_packet(self, packet: av.Packet | None, tolerant: bool = False) -> list[av.VideoFrame]:
        """The frames that come out of the decoder as a packet goes in; None: those that are left."""
        try:
            return self.stream.codec_context.decode(packet)
        except av.FFmpegError:
            if tolerant or self._lenient:
                return []
            raise

    def _seek(self, table: PacketTable, first: int) -> tuple[Iterator[av.Packet], int]:
        """The packets from one on that is `first` or before it, and the number of that one."""
        number = {times: i for i, times in enumerate(zip(table.pts.tolist(), table.dts.tolist()))}
        for goal in (table.dts[first], table.dts[first] - round(2 / table.unit), None):
            packets = self._packets(None if goal is None else int(goal))
            head = next(packets, None)
            if head is None:
                continue
            at = number.get((head.pts, head.pts if head.dts is None else head.dts), len(number))
            if at <= first:
                return itertools.chain((head,), packets), at
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


def _main_stream(streams: tuple) -> av.video.stream.VideoStream:
    """The first stream that is no cover picture, where there is one."""
    attached = av.stream.Disposition.attached_pic
    return next((s for s in streams if not s.disposition & attached and s.frames != 1), streams[0])


def _packet_count(stream: av.video.stream.VideoStream) -> int:
    """The packets that the container lists: fewer than there are in Matroska and fragments, and none where PyAV is as
    old as LeRobot's (15), which does not tell them."""
    return len(getattr(stream, "index_entries", ()))


def _upright(pixels: np.ndarray, matrix) -> np.ndarray:
    """A picture [H, W, 3] as a display matrix turns and mirrors it: nine int32 numbers, of which the first two and the
    fourth and fifth say where its columns and rows go."""
    if matrix is None:
        return pixels
    right, down, _, below_right, below_down = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(down) + abs(below_right) > abs(right) + abs(below_down):  # columns become rows
        pixels, right, below_down = pixels.swapaxes(0, 1), below_right, down
    return pixels[::-1 if below_down < 0 else 1, ::-1 if right < 0 else 1]


def _unreadable(file: str) -> str:
    """Why a local file cannot be read at all; empty where that is not the reason."""
    if "://" in file:
        return ""
    if not os.path.isfile(file):
        return "no such file"
    return "" if os.path.getsize(file) else "the file is empty"
