"""Windows per second of the data pipeline, side by side on the same files in one run; prints one JSON line.

    python benchmarks/data.py [--seconds=4] [--rounds=3] [--encoder=libx264] [--memory_windows=10000]

Windows of 33 frames, 3 steps apart, from 3 cameras of 180 x 320 in a LeRobot v2.1 dataset (a key frame every other
frame, as lerobot writes), random order, on as many threads or processes as there are cores. The ways take turns, and
each one's median over the rounds is told: a machine that others use as well slows all of them.

floor      PyAV alone: open, seek, decode from the first to the last frame of the window, only the 33 become RGB
needed     our reader alone: only the needed packets are decoded (data_pipelines/video/reading.py); no table, no tiling
lerobot    in a torch DataLoader, lerobot's own dataset where that package can be imported (`lerobot_is`: package), or
           else its pattern: per camera and window a file is opened, sought by time, decoded forward, every frame
           becomes an RGB tensor and the nearest are picked; collated
video      our loader from video: tables, relative and normalised actions, tiling to 360 x 640, collated batches
cache      our loader from the latent cache, records of the 14B's size (9 x 44 x 80 x 16 bfloat16)
disk       the same files read plainly, a record's size at a time, one after the other: no loader can be faster
--memory_windows reads that many windows more, half from video and half from the cache, and tells the resident memory in
MiB at each tenth of each; cpu_ms is this process's own time per window, which other users of the machine do not change.
"""

import json
import os
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
from absl import app, flags, logging

from benchmarks import synthetic_lerobot
from benchmarks.synthetic_lerobot import CAMERAS, RATE
from data_pipelines.cache.reader import LatentCache, record_bytes
from data_pipelines.cache.writer import CacheWriter, save_encoders
from data_pipelines.loader import Loader
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.samples import Dataset
from data_pipelines.sources import make_source
from data_pipelines.statistics import compute_statistics, save_statistics
from data_pipelines.video import reading as video
from world_model.batch import Layout, batch_spec, encoded_batch_spec

_SECONDS = flags.DEFINE_float("seconds", 4, "time given to each way in a round", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "turns of each way", lower_bound=1)
_ENCODER = flags.DEFINE_string("encoder", "libx264", "libx264, libsvtav1, libx265, libvpx-vp9")
_MEMORY = flags.DEFINE_integer("memory_windows", 0, "windows read to see whether memory grows", lower_bound=0)
EPISODES, STEPS, FRAMES, STRIDE, BATCH = 4, 200, 33, 3, 4
SPAN = (FRAMES - 1) * STRIDE
LAYOUT = Layout(frames=FRAMES, height=360, width=640, frames_per_block=2, actions_per_block=24, states_per_block=1)
FIELDS = batch_spec(LAYOUT, action_dim=32, state_dim=64, text_length=8)
CORES = os.cpu_count() or 1


def draws():
    """Endless random (episode, steps [33])."""
    rng = np.random.default_rng(0)
    while True:
        yield int(rng.integers(EPISODES)), int(rng.integers(STEPS - SPAN)) + STRIDE * np.arange(FRAMES)


def files_of(folder: Path, episode: int) -> list[Path]:
    """One per camera."""
    return [folder / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4" for camera in CAMERAS]


def decode_floor(file: Path, steps: np.ndarray) -> np.ndarray:
    """uint8 [33, H, W, 3], the plain way."""
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


def windows_per_second(work) -> float:
    """`work(draw)` on a thread per core until the time is up."""
    todo, done, lock = draws(), [0] * CORES, threading.Lock()
    until = time.perf_counter() + _SECONDS.value

    def run(worker: int) -> None:
        while time.perf_counter() < until:
            with lock:
                draw = next(todo)
            work(draw)
            done[worker] += 1

    threads = [threading.Thread(target=run, args=(i,)) for i in range(CORES)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def rows_per_second(loader) -> float:
    """TimestepRows of an iterator of batches, after its first."""
    iterator = iter(loader)
    next(iterator)
    began, rows = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS.value:
        rows += len(next(iterator)["actions"])
    return rows / (time.perf_counter() - began)


def loader_rows(loader: Loader) -> float:
    """Of one of our loaders, which is closed."""
    with loader:
        return rows_per_second(loader)


def disk_records(folder: Path, size: int) -> float:
    """Records per second of plain reads."""
    buffer, records, began = bytearray(size), 0, time.perf_counter()
    while time.perf_counter() - began < _SECONDS.value:
        for file in sorted(folder.rglob("shard-*.array_record")):
            with open(file, "rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    records += 1
    return records / (time.perf_counter() - began)


def cpu_per_window(loader: Loader) -> float:
    """Milliseconds of all cores."""
    with loader:
        next(loader)
        began, rows = time.process_time(), 0
        until = time.perf_counter() + _SECONDS.value
        while time.perf_counter() < until:
            rows += len(next(loader)["actions"])
        return 1000 * (time.process_time() - began) / rows


def resident(loader: Loader, windows: int) -> list[int]:
    """MiB of this process at each tenth of so many windows."""
    found = []
    with loader:
        for tenth in range(10):
            for _ in range(max(1, windows // 10 // BATCH)):
                next(loader)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(pages * os.sysconf("SC_PAGE_SIZE") >> 20)
            logging.info("%d of 10", tenth + 1)
    return found


def lerobot_dataset(folder: Path):
    """lerobot's own dataset, whose items are windows; None where the package cannot be imported."""
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except (ImportError, RuntimeError):  # RuntimeError: its torchvision is for another torch
        return None
    times = [STRIDE * i / RATE for i in range(FRAMES)]
    return LeRobotDataset("wamax/arms", root=folder,
                          delta_timestamps={f"observation.images.{camera}": times for camera in CAMERAS})


def lerobot_windows(folder: Path, own) -> float:
    """See the module's docstring. own: of `lerobot_dataset`."""
    import torch

    class Windows(torch.utils.data.IterableDataset):
        def __iter__(self):
            info = torch.utils.data.get_worker_info()
            for i, (episode, steps) in enumerate(draws()):
                if i % info.num_workers == info.id:
                    yield {"actions": torch.zeros(96, 14), **self.views(episode, steps)}

        def views(self, episode, steps):
            if own is not None:
                item = own[episode * STEPS + int(steps[0])]
                return {camera: item[f"observation.images.{camera}"] for camera in CAMERAS}
            found = [self.query(file, steps / RATE) for file in files_of(folder, episode)]
            return dict(zip(CAMERAS, found, strict=True))

        def query(self, file, times):
            frames, known = [], []
            with av.open(str(file)) as container:
                stream = container.streams.video[0]
                container.seek(int(times[0] / stream.time_base), stream=stream)
                for frame in container.decode(stream):
                    frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                    known.append(float(frame.pts * stream.time_base))
                    if known[-1] >= times[-1]:
                        break
            nearest = torch.cdist(torch.tensor(times)[:, None], torch.tensor(known).double()[:, None]).argmin(1)
            picked = torch.stack([frames[i] for i in nearest])
            return picked.permute(0, 3, 1, 2).to(torch.float32) / 255

    return rows_per_second(torch.utils.data.DataLoader(Windows(), BATCH, num_workers=CORES))


def tokenize(prompt: str) -> tuple[np.ndarray, int]:
    """No words."""
    return np.zeros(8, np.int32), 0


def make_dataset(folder: Path) -> Dataset:
    """The benchmark's files as a YAM robot's."""
    source = make_source("lerobot", "arms", path=str(folder), state="observation.state", action="action",
                         images={camera: f"observation.images.{camera}" for camera in CAMERAS})
    dataset = Dataset("arms", source, get_embodiment("yam"))
    statistics = compute_statistics(dataset, LAYOUT)
    return Dataset("arms", source, get_embodiment("yam"), statistics=statistics)


def write_cache(folder: Path, dataset: Dataset, windows: int) -> tuple[LatentCache, float]:
    """(a cache of noise of the 14B's sizes, GiB). Records as training reads them; 32 windows repeat."""
    rng = np.random.default_rng(0)
    spec = encoded_batch_spec(LAYOUT, action_dim=32, state_dim=64, text=(512, 4096), latent=(44, 80, 16), image=None,
                              concat_first_frame=False)
    writer = CacheWriter(folder, {"identity": {}, "encoders": ""}, spec, 256)
    noise = [rng.normal(size=spec["latents"][0]).astype(spec["latents"][1]) for _ in range(32)]
    blank = {name: np.zeros(shape, dtype) for name, (shape, dtype) in spec.items()}
    for shard in writer.shards("arms", windows):
        rows = ({**blank, "latents": noise[i % 32]} for i in writer.windows_of(shard, windows))
        writer.write_shard("arms", shard, rows)
    writer.write_texts([np.ones((40, 4096), np.float32)])
    writer.write_index("arms", lengths=dataset.source.lengths(), rates=dataset.source.rates(),
                       kept=dataset.source.kept(), text=np.zeros(len(dataset.source), np.int64))
    save_encoders(folder, {})
    save_statistics({}, f"{folder}/statistics.json")
    assert writer.finish({"arms": windows})
    return LatentCache(folder, {}, spec), windows * record_bytes(spec) / 2**30


def main(_) -> None:
    """The command."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "dataset"
        synthetic_lerobot.write(folder, episodes=EPISODES, steps=STEPS, encoder=_ENCODER.value)
        dataset = make_dataset(folder)
        loader = lambda **options: Loader([dataset], LAYOUT, tokenize, fields=FIELDS, seed=0,
                                          global_batch_size=BATCH, prefetch=2 * CORES, **options)
        with loader() as batches:
            windows = len(batches._makers[0].windows)
        own = lerobot_dataset(folder)
        cache, size = write_cache(Path(temporary) / "cache", dataset, windows)
        ways = {
            "floor": lambda: windows_per_second(
                lambda draw: [decode_floor(f, draw[1]) for f in files_of(folder, draw[0])]),
            "needed": lambda: windows_per_second(lambda draw: [
                video.read_at(str(f), draw[1] / RATE, within=0.5 / RATE) for f in files_of(folder, draw[0])]),
            "lerobot": lambda: lerobot_windows(folder, own),
            "video": lambda: loader_rows(loader()),
            "cache": lambda: loader_rows(loader(cache=cache)),
            "disk": lambda: disk_records(Path(temporary) / "cache", record_bytes(cache.spec))}
        rounds = [{name: way() for name, way in ways.items()} for _ in range(_ROUNDS.value)]
        result = {name: float(np.median([each[name] for each in rounds])) for name in ways}
        cpu = {f"{name}_cpu_ms": round(cpu_per_window(loader(**options)), 2)
               for name, options in (("video", {}), ("cache", {"cache": cache}))}
        memory = {f"{name}_resident_mib": resident(loader(**options), _MEMORY.value // 2)
                  for name, options in (("video", {}), ("cache", {"cache": cache})) if _MEMORY.value}
        print(json.dumps({
            "benchmark": "data", "unit": "windows/s", "encoder": _ENCODER.value, "cores": CORES,
            "lerobot_is": "pattern" if own is None else "package",
            **{name: round(value, 2) for name, value in result.items()},
            "video_over_floor": round(result["video"] / result["floor"], 2),
            "video_over_lerobot": round(result["video"] / result["lerobot"], 2), "cache_gib": round(size, 2),
            "cache_over_disk": round(result["cache"] / result["disk"], 2), **cpu, **memory,
            "load_average": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    app.run(main)
