"""Ways of reading windows of video that benchmarks/data.py compares, and meters of their speed."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from absl import logging

from benchmarks.synthetic_lerobot import CAMERAS, RATE
from data_pipelines.loader import Loader

EPISODES, STEPS, FRAMES, STRIDE, BATCH = 4, 200, 33, 3, 4
SPAN = (FRAMES - 1) * STRIDE
CORES = os.cpu_count() or 1


def random_windows() -> Iterator[tuple[int, np.ndarray]]:
    """Samples (episode, steps [33]) without end."""
    rng = np.random.default_rng(0)
    while True:
        yield int(rng.integers(EPISODES)), int(rng.integers(STEPS - SPAN)) + STRIDE * np.arange(FRAMES)


def files_of(folder: Path, episode: int) -> list[Path]:
    """Lists an episode's video files, one per camera."""
    return [folder / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4" for camera in CAMERAS]


def decode_floor(file: Path, steps: np.ndarray) -> np.ndarray:
    """Decodes a window the plain way: uint8 [33, H, W, 3]."""
    wanted, found = set(steps.tolist()), []
    convert = av.video.reformatter.VideoReformatter()
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(int(steps[0] / RATE / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            step = round(float(frame.pts * stream.time_base) * RATE)
            if step in wanted:
                found.append(convert.reformat(frame, format="rgb24").to_ndarray())
            if step >= steps[-1]:
                break
    return np.stack(found)


def windows_per_second(read: Callable[[int, np.ndarray], None], seconds: float) -> float:
    """Calls read(episode, steps) for random windows on a thread per core until the time is up."""
    todo, done, lock = random_windows(), [0] * CORES, threading.Lock()
    until = time.perf_counter() + seconds

    def run(worker: int) -> None:
        while time.perf_counter() < until:
            with lock:
                window = next(todo)
            read(*window)
            done[worker] += 1

    threads = [threading.Thread(target=run, args=(i,)) for i in range(CORES)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def rows_per_second(loader, seconds: float) -> float:
    """Counts the rows of an iterator of batches, after its first."""
    iterator = iter(loader)
    next(iterator)
    began, rows = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        rows += len(next(iterator)["actions"])
    return rows / (time.perf_counter() - began)


def disk_records(folder: Path, size: int, seconds: float) -> float:
    """Counts plain reads of a record's size per second."""
    buffer, records, began = bytearray(size), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for file in sorted(folder.rglob("shard-*.array_record")):
            with open(file, "rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    records += 1
    return records / (time.perf_counter() - began)


def cpu_per_window(loader: Loader, seconds: float) -> float:
    """Measures the milliseconds of all cores that a window takes; closes the loader."""
    with loader:
        next(loader)
        began, rows = time.process_time(), 0
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            rows += len(next(loader)["actions"])
        return 1000 * (time.process_time() - began) / rows


def resident(loader: Loader, windows: int) -> list[int]:
    """Measures this process's resident MiB at each tenth of so many windows; closes the loader."""
    found = []
    with loader:
        for tenth in range(10):
            for _ in range(max(1, windows // 10 // BATCH)):
                next(loader)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(pages * os.sysconf("SC_PAGE_SIZE") >> 20)
            logging.info("%d of 10", tenth + 1)
    return found
