"""Small clips whose frames tell their number, and ways to change them: cut, strip, hide, edit, mirror."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

OPEN = {"g": "10", "bf": "3", "x264-params": "open-gop=1:keyint=10:scenecut=0"}
TICKS = 1024  # of a frame in the MP4s written here at 10 Hz


def picture(i: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Eight stripes, black or white, are the bits of i."""
    image = np.full((height, width, 3), 40, np.uint8)
    for bit in range(8):
        image[:, bit * width // 8:(bit + 1) * width // 8, 1] = 220 if i >> bit & 1 else 30
    return image


def number(image: np.ndarray) -> int:
    """The number in a picture."""
    width = image.shape[1]
    return sum(1 << bit for bit in range(8)
               if np.median(image[:, bit * width // 8 + 2:(bit + 1) * width // 8 - 2, 1]) > 125)


def write(file: Path, frames: int, encoder: str = "libx264", options: dict | None = None, rate: Fraction | int = 10,
          muxer: dict | None = None, size: tuple[int, int] = (64, 64)) -> Path:
    with av.open(str(file), "w", options=muxer or {}) as container:
        stream = container.add_stream(encoder, rate=rate, options=options or {"g": "10", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")))
        container.mux(stream.encode())
    return file


def played(file: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """(times, frames) that a player shows: packets in order, around those that are damaged."""
    frames: list[av.VideoFrame] = []
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            try:
                frames += stream.codec_context.decode(packet if packet.size else None)
            except av.FFmpegError:
                continue
        times = np.array([f.pts * float(stream.time_base) for f in frames])
    return times, np.stack([f.to_ndarray(format="rgb24") for f in frames])


def remux(source: Path, target: Path, keep: Callable[[int], bool] = lambda number: True, strip: str = "",
          change: Callable[[int, bytes], bytes] | None = None) -> Path:
    """Copies the packets that are kept; strip: a filter over them; change: (number, data) -> data."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = read.streams.video[0]
        out = written.add_stream_from_template(stream)
        through = av.bitstream.BitStreamFilterContext(strip, stream) if strip else None
        packets = [p for p in read.demux(stream) if p.size and p.dts is not None]
        for i, packet in enumerate(packets):
            if not keep(i):
                continue
            if change:
                other = av.Packet(change(i, bytes(packet)))
                other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
                other.is_keyframe, packet = packet.is_keyframe, other
            for each in through.filter(packet) if through else [packet]:
                each.stream = out
                written.mux(each)
    return target


def boxes(data: bytes, begin: int, end: int):
    """(kind, begin, end) of the boxes of an MP4 between two places."""
    while begin < end:
        size, kind = struct.unpack(">I4s", data[begin:begin + 8])
        yield kind, begin, begin + size
        begin += size


def with_edits(source: Path, target: Path, *edits: tuple[int, int]) -> Path:
    """An MP4 with an edit list of (thousandths of a second, first frame; -1: nothing is shown)."""
    data = source.read_bytes()
    _, begin, end = next(box for box in boxes(data, 0, len(data)) if box[0] == b"moov")
    entries = b"".join(struct.pack(">IiHH", length, first * TICKS if first >= 0 else -1, 1, 0) for length, first in edits)
    listed = box(b"edts", box(b"elst", struct.pack(">II", 0, len(edits)) + entries))
    moov = b""
    for kind, first, last in boxes(data, begin + 8, end):
        inner = data[first:last]
        if kind == b"trak":
            parts = [(k, data[a:b]) for k, a, b in boxes(data, first + 8, last) if k != b"edts"]
            inner = box(b"trak", b"".join(part + (listed if k == b"tkhd" else b"") for k, part in parts))
        moov += inner
    target.write_bytes(data[:begin] + box(b"moov", moov) + data[end:])
    return target


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def with_matrix(source: Path, target: Path, a: int, b: int, c: int, d: int) -> Path:
    """An MP4 whose track is turned or mirrored by a display matrix."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44  # version 0: the matrix begins 40 bytes after the version
    data[at:at + 20] = struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16)
    target.write_bytes(data)
    return target
