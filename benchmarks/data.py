"""Windows per second of the data pipeline, side by side on the same files in one run; prints one JSON line.

    python -m benchmarks.data [--seconds=4] [--rounds=3] [--encoder=libx264] [--memory_windows=10000]

Windows of 33 frames, 3 steps apart, come from 3 cameras of 180 x 320 in a LeRobot v2.1 dataset (a key frame every other
frame, as lerobot writes) in random order, on as many threads or processes as there are cores. The ways take turns, and
the line tells each one's median over the rounds: other users of the machine slow all of them.

floor      PyAV alone: open, seek, decode from the first to the last frame of the window, only the 33 become RGB
needed     our reader alone: only the needed packets are decoded (data_pipelines/video/decoder.py); no table, no tiling
video      our loader from video: tables, relative and normalised actions, tiling to 360 x 640, collated batches
cache      our loader from the latent cache, records of the 14B's size (9 x 44 x 80 x 16 bfloat16)
disk       the same files read plainly, a record's size at a time, one after the other: no loader can be faster
LeRobot's own loader is in benchmarks/lerobot_data.py.
--memory_windows reads that many windows more, half from video and half from the cache, and tells the resident memory in
MiB at each tenth of each. cpu_ms is this process's own time per window, which other users of the machine do not change.
"""

import functools
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks import data_readers, synthetic_lerobot
from benchmarks.data_readers import BATCH, CORES, EPISODES, FRAMES, STEPS, files_of, windows_per_second
from benchmarks.synthetic_lerobot import CAMERAS, RATE
from data_pipelines.cache.format import record_bytes
from data_pipelines.cache.reader import LatentCache
from data_pipelines.cache.writer import CacheWriter, save_encoders
from data_pipelines.dataset import Dataset, index_windows
from data_pipelines.loader import Loader
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.sources import make_source
from data_pipelines.statistics.compute import compute_statistics
from data_pipelines.statistics.stored import save_statistics
from data_pipelines.video import reading as video
from world_model.batch import Layout, batch_spec, encoded_batch_spec

_SECONDS = flags.DEFINE_float("seconds", 4, "time given to each way in a round", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "turns of each way", lower_bound=1)
_ENCODER = flags.DEFINE_string("encoder", "libx264", "libx264, libsvtav1, libx265, libvpx-vp9")
_MEMORY = flags.DEFINE_integer("memory_windows", 0, "windows read to see whether memory grows", lower_bound=0)
LAYOUT = Layout(frames=FRAMES, height=360, width=640, frames_per_block=2, actions_per_block=24, states_per_block=1)
FIELDS = batch_spec(LAYOUT, action_dim=32, state_dim=64, text_length=8)
IDENTITY = {"code": "benchmark"}  # of the cache


def tokenize(prompt: str) -> tuple[np.ndarray, int]:
    """Returns no tokens for any prompt."""
    return np.zeros(8, np.int32), 0


def make_dataset(folder: Path) -> Dataset:
    """Opens the benchmark's files as those of a YAM robot."""
    source = make_source("lerobot", "arms", path=str(folder), state="observation.state", action="action",
                         images={camera: f"observation.images.{camera}" for camera in CAMERAS})
    dataset = Dataset("arms", source, get_embodiment("yam"))
    statistics = compute_statistics(dataset, LAYOUT)
    return Dataset("arms", source, get_embodiment("yam"), statistics=statistics)


def write_cache(folder: Path, dataset: Dataset, windows: int) -> tuple[LatentCache, float]:
    """Writes a cache of noise in records of the 14B's size, of which 32 repeat; returns (the cache, its GiB)."""
    rng = np.random.default_rng(0)
    spec = encoded_batch_spec(LAYOUT, action_dim=32, state_dim=64, text=(512, 4096), latent=(44, 80, 16), image=None,
                              concat_first_frame=False)
    writer = CacheWriter(folder, {"identity": IDENTITY, "encoders": ""}, spec, 256)
    noise = [rng.normal(size=spec["latents"][0]).astype(spec["latents"][1]) for _ in range(32)]
    blank = {name: np.zeros(shape, dtype) for name, (shape, dtype) in spec.items()}
    for shard in writer.shards("arms", windows):
        rows = ({**blank, "latents": noise[i % 32]} for i in writer.windows_of(shard, windows))
        writer.write_shard("arms", shard, rows)
    writer.write_texts([""], lambda prompt: np.ones((40, 4096), np.float32))
    writer.write_index("arms", lengths=dataset.source.lengths(), rates=dataset.source.rates(),
                       kept=dataset.source.stretches(), text=np.zeros(len(dataset.source), np.int64))
    save_encoders(folder, {})
    save_statistics({}, f"{folder}/statistics.json")
    assert writer.finish({"arms": windows})
    return LatentCache(folder, IDENTITY, spec), windows * record_bytes(spec) / 2**30


def loader_rows(loader: Loader) -> float:
    """Counts the rows per second of one of our loaders and closes it."""
    with loader:
        return data_readers.rows_per_second(loader, _SECONDS.value)


def measure(folder: Path) -> dict:
    """Measures all ways and returns the JSON line; writes its files under `folder`."""
    def floor(episode: int, steps: np.ndarray) -> None:
        for file in files_of(files, episode):
            data_readers.decode_floor(file, steps)

    def needed(episode: int, steps: np.ndarray) -> None:
        for file in files_of(files, episode):
            video.read_at(str(file), steps / RATE, within=0.5 / RATE)

    files, seconds = folder / "dataset", _SECONDS.value
    synthetic_lerobot.write(files, episodes=EPISODES, steps=STEPS, encoder=_ENCODER.value)
    dataset = make_dataset(files)
    make_loader = functools.partial(Loader, [dataset], LAYOUT, tokenize, fields=FIELDS, seed=0, global_batch_size=BATCH,
                                    prefetch=2 * CORES)
    cache, size = write_cache(folder / "cache", dataset, len(index_windows(dataset, LAYOUT)))
    ways = {
        "floor": lambda: windows_per_second(floor, seconds), "needed": lambda: windows_per_second(needed, seconds),
        "video": lambda: loader_rows(make_loader()), "cache": lambda: loader_rows(make_loader(cache=cache)),
        "disk": lambda: data_readers.disk_records(folder / "cache", record_bytes(cache.spec), seconds)}
    rounds = [{name: way() for name, way in ways.items()} for _ in range(_ROUNDS.value)]
    found = {name: float(np.median([each[name] for each in rounds])) for name in ways}
    ours = {"video": {}, "cache": {"cache": cache}}
    return {
        "benchmark": "data", "unit": "windows/s", "encoder": _ENCODER.value, "cores": CORES,
        **{name: round(value, 2) for name, value in found.items()},
        "video_over_floor": round(found["video"] / found["floor"], 2),
        "cache_gib": round(size, 2),
        "cache_over_disk": round(found["cache"] / found["disk"], 2),
        **{f"{name}_cpu_ms": round(data_readers.cpu_per_window(make_loader(**options), seconds), 2)
           for name, options in ours.items()},
        **{f"{name}_resident_mib": data_readers.resident(make_loader(**options), _MEMORY.value // 2)
           for name, options in ours.items() if _MEMORY.value},
        "load_average": round(os.getloadavg()[0], 1)}


def main(_) -> None:
    """Runs the command."""
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(Path(temporary))))


if __name__ == "__main__":
    app.run(main)
