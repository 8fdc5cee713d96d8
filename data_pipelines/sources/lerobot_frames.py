"""The times of a LeRobot episode's steps, and the frames of its cameras at them."""

import concurrent.futures
import functools
import logging

import numpy as np

from data_pipelines.episode import BadEpisode
from data_pipelines.sources.alignment import ROUNDED_RATE, VideoSpan, disagreement, frames_of
from data_pipelines.storage.lru import Lru
from data_pipelines.video import reading as video

_checked = Lru(2**16)  # places in videos whose times were compared with counts, and files where they differ


def check_times(times: np.ndarray, rate: float, where: str) -> tuple[np.ndarray, float]:
    """Returns (`times` [length], the most that one of them is off `rate`) in seconds. Raises BadEpisode where they go
    back or drift by half a step."""
    back = np.flatnonzero(~(np.diff(times) > 0))
    if len(back):
        step = back[0]
        raise BadEpisode(f"{where}: time goes back at step {step + 1}, from {times[step]:.3f} s to "
                         f"{times[step + 1]:.3f} s")
    drift = np.abs(times - times[0] - np.arange(len(times)) / rate)
    if not (drift <= 0.5 / rate + ROUNDED_RATE * (times - times[0])).all():
        worst = int(drift.argmax())
        raise BadEpisode(f"{where}: step {worst} is at {times[worst]:.3f} s, {drift[worst]:.3f} s off {rate:g} steps "
                         f"per second")
    return times, float(drift.max())


@functools.cache
def camera_threads() -> concurrent.futures.ThreadPoolExecutor:
    """The threads of this process in which cameras are read."""
    return concurrent.futures.ThreadPoolExecutor(8, "camera")


def read_frames(spans: dict[str, VideoSpan], times: np.ndarray, rate: float,
                indices: np.ndarray) -> dict[str, np.ndarray]:
    """Decodes the asked steps alone, of all cameras at once: view -> uint8 [n, H, W, 3]."""
    def read(span: VideoSpan) -> np.ndarray:
        def choose(packets: video.PacketTable) -> np.ndarray:
            frames = frames_of(span, packets, times, rate)
            _warn(span, packets, times, rate)
            return frames[np.asarray(indices)]

        return video.read(span.file, choose)

    if len(spans) == 1:
        return {view: read(span) for view, span in spans.items()}
    return dict(zip(spans, camera_threads().map(read, spans.values())))


def _warn(span: VideoSpan, packets: video.PacketTable, times: np.ndarray, rate: float) -> None:
    """Says once for each file that its time stamps are not those of the table."""
    if _checked.get(span) or _checked.get(span.file):
        return
    _checked.put(span, True)
    if said := disagreement(span, packets, times, rate):
        _checked.put(span.file, True)
        logging.warning("%s", said)


def disagreements(spans: dict[str, VideoSpan], times: np.ndarray, rate: float) -> list[str]:
    """Sentences on files whose time stamps are not those of the table."""
    found = []
    for span in spans.values():
        with video.reader(span.file) as (_, packets):
            found.append(disagreement(span, packets, times, rate))
    return sorted({*found} - {""})
