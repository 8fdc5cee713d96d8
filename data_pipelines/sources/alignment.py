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
UNSURE = 0.25  # of a frame: a time stamp that is further from every frame does not say which is meant


@dataclasses.dataclass(frozen=True)
class VideoSpan:
    """The place of an episode in a video file, by time stamps and by counting."""

    file: str
    begin: float  # seconds into the file; end likewise
    end: float
    before: int | None  # episodes before it in the file; None where the file is its own
    first: int  # frames of those
    frames: int  # frames of all episodes in the file


def count_frames(episodes: pa.Table, place: Sequence[str], begin: str) -> dict[int, tuple[int, int, int]]:
    """{episode_index: (episodes before it in its file, their frames, frames of all in it)}.

    episodes: the metadata of all that were recorded; place: its columns that name the file; begin: its column of where
    in the file an episode begins, in seconds.
    """
    numbers, lengths, begins, *places = (
        pc.cast(episodes[name], pa.float64()).to_numpy(zero_copy_only=False)
        for name in ("episode_index", "length", begin, *place))
    order = np.lexsort((begins, *places))
    sorted_places = np.stack(places, 1)[order]
    firsts = np.flatnonzero((sorted_places[1:] != sorted_places[:-1]).any(1)) + 1  # a NaN is a file of its own
    found = {}
    for group in np.split(order, firsts):
        ends = np.cumsum(np.nan_to_num(lengths[group])).astype(np.int64).tolist()
        found |= {int(numbers[row]): (i, ends[i - 1] if i else 0, ends[-1]) for i, row in enumerate(group.tolist())
                  if np.isfinite(numbers[row])}
    return found


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
    if span.before is None:
        if there != steps:
            raise BadEpisode(f"{span.file}: {there} frames can be read, the table has {steps} steps")
        return 0
    if there == span.frames:
        counted = float(packets.times[span.first])
        if abs(counted - span.begin) > (1 + span.before / 2) / rate + ROUNDED_RATE * counted:
            raise BadEpisode(f"{span.file}: by its time stamp the episode begins at {span.begin:.3f} s, by the frames "
                             f"of the {span.before} episodes before it at {counted:.3f} s: the metadata are of "
                             f"another version")
        return span.first
    near = int(packets.nearest(np.array([span.begin]))[0])
    off = abs(span.begin - float(packets.times[near])) * rate
    if off > UNSURE and span.begin <= packets.times[-1]:
        raise BadEpisode(f"{span.file}: the episode begins at {span.begin:.3f} s, {off:.2f} of a frame off the nearest "
                         f"frame, and the file's {there} frames are not the {span.frames} steps of its episodes: "
                         f"nothing says which frame is meant")
    inside = (packets.times > span.begin - 0.5 / rate) & (packets.times < span.end - 0.5 / rate)
    return near if inside.sum() == steps else None
