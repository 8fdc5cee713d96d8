"""Writes imagined episodes as a LeRobot v3.0 dataset, and says where they come from (extra: data).

A dataset of imagined video has "imagined": true in meta/info.json, and meta/imagined.json beside it: the model by the
hash of its weights, seeds, thresholds. Without that it is not read (sources/lerobot_folder.py): nobody could tell later
what a model was trained on.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from world_model import kinds

FILE = "imagined.json"
PROVENANCE = kinds.fields({
    "weights": kinds.text, "workdir": kinds.text, "step": kinds.whole(), "family": kinds.text, "task": kinds.text,
    "seed": kinds.whole(), "episodes_tried": kinds.whole(), "blocks": kinds.whole(), "most_apart": kinds.number(0),
    "sampling": kinds.MAP, "each": kinds.list_of(kinds.MAP)},
    required=("weights", "workdir", "step", "seed", "most_apart"))
CAMERA, TABLE = "observation.images.{}", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
NUMBERS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
           "task_index": "int64"}


class ImaginedEpisode(NamedTuple):
    """Step t holds what is seen, and the action that is applied to it."""

    frames: np.ndarray  # uint8 [steps, H, W, 3]
    states: np.ndarray  # float32 [steps, state dims], robot units
    actions: np.ndarray  # float32 [steps, action dims], robot units
    instruction: str


def write(out: Path, episodes: list[ImaginedEpisode], *, view: str, rate: float, provenance: dict) -> None:
    """Writes the folder OUT, which must not be there. view: the robot's only camera. Raises FileExistsError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_pipelines.simulators.recorder import mp4

    out.mkdir(parents=True)
    lengths, camera = [len(episode.frames) for episode in episodes], CAMERA.format(view)
    ends, at = np.cumsum(lengths), {"chunk_index": 0, "file_index": 0}
    tasks = sorted({episode.instruction for episode in episodes})
    steps = np.concatenate([np.arange(length) for length in lengths])
    rows = {"observation.state": list(np.concatenate([episode.states for episode in episodes])),
            "action": list(np.concatenate([episode.actions for episode in episodes])),
            "timestamp": np.float32(steps / rate), "frame_index": steps,
            "episode_index": np.repeat(np.arange(len(episodes)), lengths), "index": np.arange(ends[-1]),
            "task_index": np.repeat([tasks.index(episode.instruction) for episode in episodes], lengths)}
    places = [{"episode_index": i, "tasks": [episodes[i].instruction], "length": length,
               "data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": int(end) - length,
               "dataset_to_index": int(end), f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0,
               f"videos/{camera}/from_timestamp": (int(end) - length) / rate,
               f"videos/{camera}/to_timestamp": int(end) / rate} for i, (length, end) in enumerate(zip(lengths, ends))]
    tables = {TABLE.format(**at): pa.table(rows),
              "meta/episodes/chunk-000/file-000.parquet": pa.Table.from_pylist(places),
              "meta/tasks.parquet": pa.table({"task": tasks, "task_index": np.arange(len(tasks))})}
    for name, table in tables.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out / name)
    video = out / VIDEO.format(video_key=camera, **at)
    video.parent.mkdir(parents=True)
    video.write_bytes(mp4(np.concatenate([episode.frames for episode in episodes]), rate))
    (out / "meta" / FILE).write_text(json.dumps(provenance, indent=1) + "\n")
    (out / "meta/info.json").write_text(json.dumps(_info(episodes, camera, rate, len(tasks)), indent=1) + "\n")


def _info(episodes: list[ImaginedEpisode], camera: str, rate: float, tasks: int) -> dict:
    first, total = episodes[0], sum(len(episode.frames) for episode in episodes)
    features = {camera: {"dtype": "video", "shape": list(first.frames.shape[1:]),
                         "names": ["height", "width", "channel"]}}
    features |= {name: {"dtype": "float32", "shape": [values.shape[1]], "names": None}
                 for name, values in (("observation.state", first.states), ("action", first.actions))}
    features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in NUMBERS.items()}
    return {"codebase_version": "v3.0", "imagined": True, "robot_type": None, "fps": int(rate),
            "total_episodes": len(episodes), "total_frames": total, "total_tasks": tasks, "chunks_size": 1000,
            "splits": {"train": f"0:{len(episodes)}"}, "data_path": TABLE, "video_path": VIDEO, "features": features}
