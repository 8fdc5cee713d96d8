"""Which frame of a video belongs to which step of an episode.

Two things say it: how many frames the episodes of a file have, and the time stamps of table, metadata and video.
Writers count frames rightly and round times (29.97 frames per second are called 30, durations are added up), so that
counts decide where they fit the file, and times where they do not.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.episode import BadEpisode
from data_pipelines.video.packets import PacketTable

ROUNDED_RATE = 0.002  # share by which a rate may be another than it is called
UNSURE = 0.25  # share of a frame; a time stamp further than this from every frame does not say which is meant


@dataclasses.dataclass(frozen=True)
class Count:
    """The place of an episode in a video file, by counting."""

    frames: int  # frames of all episodes in the file
    before: tuple[tuple[int, int], ...]  # (episodes before it in the file, their frames), in either order


@dataclasses.dataclass(frozen=True)
class VideoSpan:
    """The place of an episode in a video file."""

    file: str
    begin: float = 0.0  # seconds into the file, by the metadata; end likewise
    end: float = 0.0
    count: Count | None = None  # None where the file is its own


def count_frames(episodes: pa.Table, place: Sequence[str], begin: str) -> dict[int, Count]:
    """{episode_index: its place}, counted in the order of their numbers and in that of their time stamps, which differ
    where one of them is wrong.

    episodes: the metadata of all that were recorded; place: its columns that name the file; begin: its column of where
    in the file an episode begins, in seconds.
    """
    numbers, lengths, begins, *places = (
        pc.cast(episodes[name], pa.float64()).to_numpy(zero_copy_only=False)
        for name in ("episode_index", "length", begin, *place))
    before: dict[int, set] = {number: set() for number in numbers[np.isfinite(numbers)].astype(int).tolist()}
    total = {}
    for key in (numbers, begins):
        order = np.lexsort((key, *places))
        sorted_places = np.stack(places, 1)[order]
        firsts = np.flatnonzero((sorted_places[1:] != sorted_places[:-1]).any(1)) + 1  # a NaN is a file of its own
        for group in np.split(order, firsts):
            ends = [0, *np.cumsum(np.nan_to_num(lengths[group])).astype(np.int64).tolist()]
            for i, row in enumerate(group.tolist()):
                if np.isfinite(numbers[row]):
                    before[int(numbers[row])].add((i, ends[i]))
                    total[int(numbers[row])] = ends[-1]
    return {number: Count(total[number], tuple(sorted(found))) for number, found in before.items()}


def frames_of(span: VideoSpan, packets: PacketTable, times: np.ndarray, rate: float) -> np.ndarray:
    """The frame of each step, by its number in the order shown: int64 [steps].

    times: the table's time stamps, in seconds since the episode's begin. Raises BadEpisode where nothing says which
    frames are meant.
    """
    first = _first(span, packets, len(times), rate)
    if first is None:
        return packets.nearest_within(span.begin + times, 0.5 / rate, span.file)
    return first + np.arange(len(times))


def disagreement(span: VideoSpan, packets: PacketTable, times: np.ndarray, rate: float) -> str:
    """A sentence where counts say another frame of a step than its time stamp; empty where they agree."""
    frames = frames_of(span, packets, times, rate)
    off = np.abs(packets.times[frames] - (span.begin + times))
    worst = int(off.argmax())
    if off[worst] <= 0.5 / rate:
        return ""
    return (f"{span.file}: the time stamp of step {worst} is {off[worst]:.3f} s, or {off[worst] * rate:.1f} steps, off "
            f"its frame's; the numbers of frames fit, and frames are taken by them")


def _first(span: VideoSpan, packets: PacketTable, steps: int, rate: float) -> int | None:
    """The frame of the first step, where every step has the next one; None where times have to say it."""
    there = len(packets.order)
    if span.count is None:
        if there != steps:
            raise BadEpisode(f"{span.file}: {there} frames can be read, the table has {steps} steps")
        return 0
    if there == span.count.frames:
        return _counted(span, packets, rate)
    near = int(packets.nearest(np.array([span.begin]))[0])
    off = abs(span.begin - float(packets.times[near])) * rate
    if off > UNSURE and span.begin <= packets.times[-1]:
        raise BadEpisode(f"{span.file}: the episode begins at {span.begin:.3f} s, {off:.2f} of a frame off the nearest "
                         f"frame, and the file's {there} frames are not the {span.count.frames} steps of its episodes: "
                         f"nothing says which frame is meant")
    inside = (packets.times > span.begin - 0.5 / rate) & (packets.times < span.end - 0.5 / rate)
    return near if inside.sum() == steps else None


def _counted(span: VideoSpan, packets: PacketTable, rate: float) -> int:
    """The frame of the first step by counting. Raises BadEpisode where that is far from its time stamp."""
    for before, first in span.count.before:
        counted = float(packets.times[min(first, len(packets.order) - 1)])
        if abs(counted - span.begin) <= (1 + before / 2) / rate + ROUNDED_RATE * counted:
            return first
    raise BadEpisode(f"{span.file}: by its time stamp the episode begins at {span.begin:.3f} s, by the frames of those "
                     f"before it at {counted:.3f} s: the metadata are of another version")
