"""Writes a miniature in LeRobot's formats v2.0, v2.1 and v3.0."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.simulators.miniatures.fields import Numbers, Picture, Text, columns
from data_pipelines.simulators.miniatures.sets import Miniature
from data_pipelines.simulators.recorder import mp4, png

TABLE, VIDEO = "episode_{episode_index:06d}.parquet", "episode_{episode_index:06d}.mp4"
PATHS = {"v2": (f"data/chunk-{{episode_chunk:03d}}/{TABLE}",
                f"videos/chunk-{{episode_chunk:03d}}/{{video_key}}/{VIDEO}"),
         "v3": ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")}


def write_lerobot(out: Path, mini: Miniature) -> None:
    """Writes the folder OUT: a table and videos for each episode (v2.0: pictures in the table), or for all (v3.0)."""
    root, shared = out, mini.version == "v3.0"
    table_path, video_path = PATHS["v3" if shared else "v2"]
    cameras = {key: field for key, field in mini.fields.items() if isinstance(field, Picture)}
    in_tables = mini.version == "v2.0"
    tables = []
    for i in range(mini.episodes):
        rows = {key: list(values) for key, values in columns(mini.fields, mini.steps, i).items()}
        if in_tables:
            rows |= {key: [{"bytes": png(frame), "path": f"frame_{t:06d}.png"} for t, frame in enumerate(
                field.frames(key, mini.steps, i))] for key, field in cameras.items()}
        steps = np.arange(mini.steps)
        rows |= {"timestamp": (steps / mini.rate).astype(np.float32), "frame_index": steps,
                 "episode_index": np.full_like(steps, i), "index": steps + i * mini.steps,
                 "task_index": np.zeros_like(steps)}
        tables.append(pa.table(rows))
    videos = {} if in_tables else {
        key: [field.frames(key, mini.steps, i) for i in range(mini.episodes)] for key, field in cameras.items()}
    if shared:
        tables, videos = [pa.concat_tables(tables)], {key: [np.concatenate(all_)] for key, all_ in videos.items()}
    for i, table in enumerate(tables):
        at = {"episode_index": i, "episode_chunk": 0, "chunk_index": 0, "file_index": 0}
        pq.write_table(table, _with_parent(root / table_path.format(**at)))
        for key, frames in videos.items():
            _with_parent(root / video_path.format(video_key=key, **at)).write_bytes(mp4(frames[i], mini.rate))
    _meta(root, mini, table_path, None if in_tables else video_path)


def _meta(root: Path, mini: Miniature, table_path: str, video_path: str | None) -> None:
    features = {key: {"dtype": "video" if video_path else "image", "shape": [field.height, field.width, 3],
                      "names": ["height", "width", "channel"]}
                for key, field in mini.fields.items() if isinstance(field, Picture)}
    features |= {key: {"dtype": field.dtype, "shape": [field.width], "names": None}
                 for key, field in mini.fields.items() if isinstance(field, Numbers)}
    features |= {key: {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
                 for key in ("timestamp", "frame_index", "episode_index", "index", "task_index")}
    info = {"codebase_version": mini.version, "robot_type": root.name, "fps": int(mini.rate),
            "total_episodes": mini.episodes, "total_frames": mini.episodes * mini.steps, "total_tasks": 1,
            "chunks_size": 1000, "splits": {"train": f"0:{mini.episodes}"}, "data_path": table_path,
            "video_path": video_path, "features": features}
    _with_parent(root / "meta/info.json").write_text(json.dumps(info, indent=1))
    episodes = [{"episode_index": i, "tasks": [Text().text], "length": mini.steps} for i in range(mini.episodes)]
    if mini.version != "v3.0":
        (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)))
        (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": Text().text}))
        return
    seconds = mini.steps / mini.rate
    places = [{"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": i * mini.steps,
               "dataset_to_index": (i + 1) * mini.steps} | {
                   f"videos/{key}/{what}": value for key, field in mini.fields.items() if isinstance(field, Picture)
                   for what, value in (("chunk_index", 0), ("file_index", 0), ("from_timestamp", i * seconds),
                                       ("to_timestamp", (i + 1) * seconds))} for i in range(mini.episodes)]
    pq.write_table(pa.Table.from_pylist([a | b for a, b in zip(episodes, places, strict=True)]),
                   _with_parent(root / "meta/episodes/chunk-000/file-000.parquet"))
    pq.write_table(pa.table({"task": [Text().text], "task_index": [0]}), root / "meta/tasks.parquet")


def _with_parent(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
