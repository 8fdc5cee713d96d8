"""The packets of a video stream, listed once per file.

From the list follows, by arithmetic, how many frames a player shows and when, and which packets a frame needs: those
from the last picture that decoding can begin with up to itself.
"""

import dataclasses
import fractions
import functools

import numpy as np

from data_pipelines.episode import BadEpisode


@dataclasses.dataclass(frozen=True)
class PacketTable:
    """The packets of a file's video stream in decoding order."""

    pts: np.ndarray  # int64 [packets], presentation time in units of `unit`
    dts: np.ndarray  # int64 [packets], decoding time, which seeking goes by
    start: np.ndarray  # bool [packets]: decoding can begin here, for what is shown later
    clean: np.ndarray  # bool [packets]: a start, and nothing behind it knows of anything before (in H.264 an IDR)
    shown: np.ndarray  # bool [packets]: False where no player shows a frame of it
    unit: fractions.Fraction  # seconds
    lost: int = 0  # packets that the container lists and the file does not hold

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The packets in the order in which they are shown, int64 [frames]."""
        frames = np.flatnonzero(self.shown)
        return frames[np.argsort(self.pts[frames], kind="stable")]

    @functools.cached_property
    def times(self) -> np.ndarray:
        """The seconds of each frame since the file's first, float64 [frames], ascending."""
        pts = self.pts[self.order]
        return (pts - pts[0]) * float(self.unit)

    def rate(self, nominal: float) -> float:
        """Frames per second: the container's `nominal` rate where its even steps end with the last frame, to half a
        frame; otherwise the frames' average."""
        steps, seconds = len(self.order) - 1, float(self.times[-1])
        if not steps:
            return nominal or 1.0
        if nominal and abs(steps / nominal - seconds) <= 0.5 / nominal:
            return nominal
        return float(steps / (int(np.ptp(self.pts[self.order])) * self.unit)) if seconds else 0.0

    def nearest(self, times: np.ndarray) -> np.ndarray:
        """The number, in the order shown, of the frame that is nearest to each time: int64 like `times`."""
        known = self.times
        right = np.searchsorted(known, times).clip(0, len(known) - 1)
        left = np.maximum(right - 1, 0)
        return np.where(times - known[left] <= known[right] - times, left, right)

    def nearest_within(self, times: np.ndarray, within: float, file: str) -> np.ndarray:
        """`nearest`; raises BadEpisode where one is further than `within` seconds off. file: for the message."""
        frames = self.nearest(times)
        off = np.abs(self.times[frames] - times)
        if off.max() > within:
            worst = int(off.argmax())
            raise BadEpisode(f"{file}: cannot be decoded: no frame at {times[worst]:.3f} s; the nearest of its "
                             f"{len(self.order)} frames is at {self.times[frames[worst]]:.3f} s. The file is cut "
                             f"short, or does not belong to this recording")
        return frames

    def needed(self, packets: np.ndarray, clean_only: bool = False) -> np.ndarray:
        """True on what must be decoded for the frames of `packets`, bool [packets].

        A frame that is shown before the picture that it follows (a leading one) needs the start before that. A recovery
        point needs the one before it, too: frames behind it name earlier ones, if only to forget them. clean_only: a
        decode begins with clean starts alone.
        """
        out = np.zeros(len(self.pts), np.bool_)
        for packet in np.unique(packets).tolist():
            out[max(self._begin(packet, clean_only), 0):packet + 1] = True
        return out

    def exact(self, first: int) -> int:
        """The packet from which on a decode that begins with packet `first` gives every frame exactly."""
        if self.clean[first]:
            return first
        return first + 1 + int(np.argmax(self.start[first + 1:])) if self.start[first + 1:].any() else first

    def has_start(self, packets: np.ndarray) -> np.ndarray:
        """Whether there is a place before each packet from which decoding is exact, bool like `packets`; where there is
        none, its frame is what a player makes of the file's beginning."""
        return np.array([self._begin(packet) >= 0 for packet in packets.tolist()], np.bool_)

    def _begin(self, packet: int, clean_only: bool = False) -> int:
        """The packet with which a decode for the frame of `packet` begins; -1 where there is none."""
        starts = self.clean if clean_only else self.start
        usable = np.flatnonzero(starts[:packet + 1] & (self.pts[:packet + 1] <= self.pts[packet]))
        if not len(usable) or self.clean[usable[-1]]:
            return int(usable[-1]) if len(usable) else -1
        before = np.flatnonzero(self.start[:usable[-1]])
        return int(before[-1]) if len(before) else -1

    @property
    def head(self) -> int:
        """The number of packets at the file's beginning that may give no frame: those before the first start, and the
        leading ones after it. 0 in most files."""
        starts = np.flatnonzero(self.start)
        if not len(starts):
            return len(self.pts)
        first, end = starts[0], starts[1] if len(starts) > 1 else len(self.pts)
        leading = np.flatnonzero(self.pts[first:end] < self.pts[first])
        return int(first + leading[-1] + 1) if len(leading) else int(first)
