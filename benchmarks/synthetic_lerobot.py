"""Writer of a LeRobot v2.1 dataset of random motion, for the benchmarks of the data pipeline."""

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CAMERAS = ("top", "left", "right")
RATE = 30


def write(folder: Path, *, episodes: int, steps: int, dims: int = 14, videos: bool = True, encoder: str = "libx264",
          height: int = 180, width: int = 320) -> None:
    """Writes episodes from three cameras; every other frame is a key frame, as lerobot does.

    Without `videos` only tables are written.
    """
    rng = np.random.default_rng(0)
    vector = {"dtype": "float32", "shape": [dims], "names": [f"joint_{i}" for i in range(dims)]}
    features = {"observation.state": vector, "action": vector, "timestamp": {"dtype": "float32", "shape": [1]},
                "episode_index": {"dtype": "int64", "shape": [1]}, "task_index": {"dtype": "int64", "shape": [1]}}
    features |= {f"observation.images.{c}": {"dtype": "video", "shape": [height, width, 3]} for c in CAMERAS}
    info = {"codebase_version": "v2.1", "fps": RATE, "chunks_size": 1000, "total_episodes": episodes,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            "features": features}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "move about"}) + "\n")
    (folder / "meta/episodes.jsonl").write_text("".join(
        json.dumps({"episode_index": i, "tasks": ["move about"], "length": steps}) + "\n" for i in range(episodes)))
    for i in range(episodes):
        names = {"episode_index": i, "episode_chunk": i // 1000}
        _write_table(folder / info["data_path"].format(**names), rng, i, steps, dims)
        for camera in CAMERAS if videos else ():
            file = folder / info["video_path"].format(**names, video_key=f"observation.images.{camera}")
            _write_video(file, rng, steps, encoder, height, width)


def _write_table(file: Path, rng, episode: int, steps: int, dims: int) -> None:
    state = rng.normal(0, 0.02, (steps, dims)).cumsum(0).astype(np.float32)
    action = state + rng.normal(0, 0.01, state.shape).astype(np.float32)

    def vectors(rows: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), dims)

    def constant(value: int) -> pa.Array:
        return pa.array(np.full(steps, value, np.int64))

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({
        "observation.state": vectors(state), "action": vectors(action),
        "timestamp": pa.array(np.arange(steps, dtype=np.float32) / RATE),
        "episode_index": constant(episode), "task_index": constant(0)}), file)


def scenes(rng, steps: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yields the uint8 [H, W, 3] pictures of a textured scene that drifts and a bright block that moves, with sensor
    noise."""
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    scene = coarse.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.int16)
    for i in range(steps):
        image = np.roll(scene, i // 4, 1) + rng.integers(-6, 6, scene.shape, np.int16)
        image[60:100, 3 * i % (width - 40):][:, :40] = 255
        yield image.clip(0, 255).astype(np.uint8)


def _write_video(file: Path, rng, steps: int, encoder: str, height: int, width: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(encoder, rate=RATE, options={"g": "2", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in scenes(rng, steps, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
