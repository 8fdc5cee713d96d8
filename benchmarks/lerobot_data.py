"""Our loader beside LeRobot's on a v3.0 dataset that LeRobot wrote; prints one JSON line.

    PATHS python -m benchmarks.lerobot_data [--seconds=4] [--rounds=3] [--codec=h264]

The environment is that of benchmarks/check_lerobot.py with `pip install --no-deps torchcodec==0.17.0`. torchcodec needs
FFmpeg: with PATHS, LD_LIBRARY_PATH=DIR where DIR has all files of PyAV's av.libs, and links to them by the names
libavcodec.so.61, libavdevice.so.61, libavfilter.so.10, libavformat.so.61, libavutil.so.59, libswresample.so.5 and
libswscale.so.8, everybody decodes with one FFmpeg.

All ways read the same windows in the same order: 33 frames, 3 steps apart, of 3 cameras of 180 x 320, and 96 actions,
in batches of 4, with as many threads or processes as there are cores and as many batches ahead. That pictures are equal
is checked. The ways take turns. A window's processor time is that of all processes; other users of the machine change
it less than the windows per second.

ours        our loader: besides, actions are made relative and normalised, and views tiled to 360 x 640
torchcodec  LeRobot's dataset in a torch DataLoader as lerobot-train sets it up: uint8, workers that stay, cameras
            decoded in parallel
pyav        the same with its other decoder
alone       torchcodec alone, on threads, with decoders that stay open: nothing is picked, stacked or sent. No way of
            batching in LeRobot can be faster than this
"""

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from absl import app, flags
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torchcodec.decoders import VideoDecoder

from benchmarks.data import FIELDS, LAYOUT, make_dataset, tokenize
from benchmarks.data_readers import BATCH, CORES, EPISODES, FRAMES, STEPS, STRIDE
from benchmarks.synthetic_lerobot import CAMERAS, RATE, scenes
from data_pipelines.dataset import Dataset
from data_pipelines.loader import Loader

_CODEC = flags.DEFINE_enum("codec", "libsvtav1", ["libsvtav1", "h264"], "LeRobot's name of it")
KEYS = {camera: f"observation.images.{camera}" for camera in CAMERAS}
AHEAD = 2 * CORES  # batches
OFFSETS = STRIDE * np.arange(FRAMES)


def write(folder: Path, encoder: str, height: int = 180, width: int = 320, dims: int = 14) -> None:
    """Writes episodes by LeRobot's own writer, with its settings of the encoder."""
    vector = {"dtype": "float32", "shape": (dims,), "names": [f"joint_{i}" for i in range(dims)]}
    picture = {"dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector} | {key: picture for key in KEYS.values()}
    rng = np.random.default_rng(0)
    written = LeRobotDataset.create("wamax/arms", RATE, features, root=folder, streaming_encoding=True,
                                    rgb_encoder=RGBEncoderConfig(vcodec=encoder))
    for _ in range(EPISODES):
        states = rng.normal(0, 0.02, (STEPS, dims)).cumsum(0).astype(np.float32)
        for state, *views in zip(states, *(scenes(rng, STEPS, height, width) for _ in KEYS), strict=True):
            written.add_frame({"observation.state": state, "action": state + np.float32(0.01), "task": "move about",
                               **dict(zip(KEYS.values(), views, strict=True))})
        written.save_episode()
    written.finalize()


def make_loader(dataset: Dataset, fields: dict) -> Loader:
    """Our loader with these fields of the batch."""
    return Loader([dataset], LAYOUT, tokenize, fields=fields, seed=0, global_batch_size=BATCH, prefetch=AHEAD)


def drawn(dataset: Dataset, count: int) -> list[int]:
    """The rows of the table with which the first windows that our loader samples begin."""
    names, found = ("episode_index", "start", "actions"), []
    with make_loader(dataset, {name: FIELDS[name] for name in names}) as loader:
        while len(found) < count:
            batch = next(loader)
            found += (batch["episode_index"] * STEPS + batch["start"]).tolist()
    return found


def of_lerobot(folder: Path, decoder: str) -> LeRobotDataset:
    """LeRobot's dataset, of which an item is a window."""
    times = {key: (OFFSETS / RATE).tolist() for key in KEYS.values()}
    times["action"] = [i / RATE for i in range(LAYOUT.num_actions)]
    return LeRobotDataset("wamax/arms", root=folder, video_backend=decoder, return_uint8=True, delta_timestamps=times)


def check_equal(dataset: Dataset, item: dict, row: int) -> None:
    """Raises AssertionError where the pictures of LeRobot's item are others than ours."""
    ours = dataset.source[row // STEPS].read_frames(row % STEPS + OFFSETS)
    for camera, key in KEYS.items():
        np.testing.assert_array_equal(item[key].permute(0, 2, 3, 1).numpy(), ours[camera], err_msg=camera)


def alone(folder: Path, rows: list[int]) -> Iterator[int]:
    """Yields the number of windows that torchcodec read since the last time, on a thread per core."""
    files, todo, lock = sorted(folder.glob("videos/*/*/*.mp4")), iter(rows), threading.Lock()
    ended, done = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        decoders = [VideoDecoder(str(file), seek_mode="approximate") for file in files]
        while not ended.is_set():
            with lock:
                row = next(todo)
            for decoder in decoders:
                decoder.get_frames_at(indices=(row + OFFSETS).tolist())
            done.release()

    threads = [threading.Thread(target=work) for _ in range(CORES)]
    for thread in threads:
        thread.start()
    try:
        while True:
            done.acquire()
            yield 1
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def processor_seconds() -> float:
    """The processor time that this process and its children have taken."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    ticks = 0
    for pid in pids:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(counts: Iterator[int]) -> tuple[float, float]:
    """(windows per second, processor milliseconds per window), once as many batches came as may lie ready."""
    for _ in range(AHEAD):
        next(counts)
    rows, began, processor = 0, time.perf_counter(), processor_seconds()
    while time.perf_counter() - began < flags.FLAGS.seconds:
        rows += next(counts)
    return rows / (time.perf_counter() - began), 1000 * (processor_seconds() - processor) / rows


def compare(folder: Path) -> dict:
    """Writes the dataset, measures all ways and returns the JSON line."""
    write(folder, _CODEC.value)
    dataset = make_dataset(folder)
    rows = drawn(dataset, 20_000)
    theirs = {decoder: of_lerobot(folder, decoder) for decoder in ("torchcodec", "pyav")}

    def lerobot(name: str) -> tuple[float, float]:
        loader = torch.utils.data.DataLoader(theirs[name], BATCH, sampler=rows, num_workers=CORES,
                                             prefetch_factor=AHEAD // CORES, persistent_workers=True)
        return measure(len(batch["action"]) for batch in loader)

    def ours() -> tuple[float, float]:
        with make_loader(dataset, FIELDS) as loader:
            return measure(len(batch["actions"]) for batch in loader)

    ways = {"ours": ours, "torchcodec": lambda: lerobot("torchcodec"), "pyav": lambda: lerobot("pyav"),
            "alone": lambda: measure(alone(folder, rows))}
    found = np.array([[way() for way in ways.values()] for _ in range(flags.FLAGS.rounds)])  # [rounds, ways, 2]
    for decoder in theirs.values():  # at the end: workers must not share an open decoder of this process
        check_equal(dataset, decoder[rows[0]], rows[0])
    speed, spent = np.median(found, 0).T
    faster, cheaper = np.median(found[..., 0] / found[:, :1, 0], 0), np.median(found[..., 1] / found[:, :1, 1], 0)
    each = {name: {"windows/s": round(speed[i], 2), "cpu_ms": round(spent[i], 1),
                   "ours_faster": round(1 / faster[i], 2), "ours_cheaper": round(cheaper[i], 2)}
            for i, name in enumerate(ways)}
    return {"benchmark": "lerobot_data", "codec": _CODEC.value, "cores": CORES, **each,
            "load_average": round(os.getloadavg()[0], 1)}


def main(_) -> None:
    """Runs the command."""
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(compare(Path(temporary, "dataset"))))


if __name__ == "__main__":
    app.run(main)
