"""LeRobot datasets that do not fit together: what is wrong is named, with its file, and counted."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.episode import BadEpisode
from data_pipelines.loader import Loader
from data_pipelines.statistics.compute import compute_statistics
from tests import lerobot_files
from tests.fake_source import tokenize
from tests.lerobot_files import FIXTURES, LAYOUT, ROBOT, VERSIONS, change_column, open_source, table_of, video_of


def set_at(values: list, step: int, value) -> list:
    return [*values[:step], value, *values[step + 1:]]


def truncate(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:int(len(data) * keep)])


def narrow(file: Path) -> None:
    table = pq.read_table(file)
    column = pa.array([row[:7] for row in table["action"].to_pylist()], pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), file)


def ragged(file: Path) -> None:
    table = pq.read_table(file)
    rows = table["action"].to_pylist()
    column = pa.array(set_at(rows, 3, rows[3][:7]), pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), file)


BAD_TABLES = {
    "zero bytes": (lambda f: f.write_bytes(b""), "episode_000001.parquet: cannot be read"),
    "cut short": (lambda f: truncate(f, 0.6), "episode_000001.parquet: cannot be read"),
    "missing": (lambda f: f.unlink(), "episode_000001.parquet: no such file"),
    "time back": (lambda f: change_column(f, "timestamp", lambda v: set_at(v, 7, 0.1)),
                  r"time goes back at step 7, from 0.400 s to 0.100 s"),
    "time drifts": (lambda f: change_column(f, "timestamp", lambda v: [1.1 * t for t in v]), r"step 60 is at 4.400 s"),
    "no time": (lambda f: change_column(f, "timestamp", lambda v: set_at(v, 7, None)), "time goes back at step 7"),
    "NaN": (lambda f: change_column(f, "action", lambda v: [[float("nan"), *row[1:]] for row in v]),
            "action 'a0' is nan at step"),
    "null": (lambda f: change_column(f, "action", lambda v: [[None, *row[1:]] for row in v]), "'a0' is nan at step"),
    "narrow": (narrow, r"action of embodiment 'discs' should be \(61, 8\).*found \(61, 7\)"),
    "ragged": (ragged, r"the rows of 'action' have \[7, 8\] numbers"),
    "rows lost": (lambda f: pq.write_table(pq.read_table(f).slice(0, 50), f), "has 50 steps, the metadata say 61"),
    "rows added": (lambda f: pq.write_table(pa.concat_tables([pq.read_table(f)] * 2), f), "has 122 steps, the metadata"),
    "other episode": (lambda f: change_column(f, "episode_index", lambda v: [4] * len(v)), r"belong to episodes \[4\]"),
    "other task": (lambda f: change_column(f, "task_index", lambda v: [17] * len(v)), "task_index = 17 is none of the 4"),
}
BAD_VIDEOS = {
    "zero bytes": (lambda f: f.write_bytes(b""), "front/episode_000001.mp4: the file is empty"),
    "cut short": (lambda f: truncate(f, 0.7), "front/episode_000001.mp4: "),
    "missing": (lambda f: f.unlink(), "front/episode_000001.mp4: no such file"),
    "no video": (lambda f: f.write_text("no video" * 100), "front/episode_000001.mp4: cannot be opened"),
    "another's": (lambda f: shutil.copy(f.with_name("episode_000002.mp4"), f), "40 frames can be read, the table has 61"),
}


def make_loader(folder, **options) -> Loader:
    """Statistics are those of the whole dataset."""
    whole = Dataset("discs", open_source(FIXTURES / "lerobot_v21"), ROBOT)
    dataset = Dataset("discs", open_source(folder), ROBOT, statistics=compute_statistics(whole, LAYOUT))
    return Loader([dataset], LAYOUT, lambda prompt: tokenize(prompt[:8]), fields=lerobot_files.BATCH, seed=0,
                  global_batch_size=8, **options)


@pytest.mark.parametrize("spoil, named", [*BAD_TABLES.values()], ids=[*BAD_TABLES])
def test_bad_tables_are_named(v21, spoil, named):
    spoil(table_of(v21, 1))
    with make_loader(v21, max_bad_fraction=9.0) as loader:
        for _ in range(9):
            assert 1 not in next(loader)["episode_index"]
        [(key, entry)] = loader.state()["bad"].items()
    assert key == "discs/1" and entry["count"] >= 37
    assert re.search(named, entry["reason"])


def test_a_shared_table_without_steps_is_named(v30):
    table = v30 / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(table).slice(0, 0), table)
    with pytest.raises(BadEpisode, match="file-000.parquet: the table has no steps"):
        _ = open_source(v30)[0]


@pytest.mark.parametrize("spoil, named", [*BAD_VIDEOS.values()], ids=[*BAD_VIDEOS])
def test_bad_videos_are_named_and_counted(v21, spoil, named):
    spoil(video_of(v21, 1))
    with make_loader(v21, max_bad_fraction=9.0) as loader:
        for _ in range(9):
            assert 1 not in next(loader)["episode_index"]
        [(key, entry)] = loader.state()["bad"].items()
    assert key == "discs/1" and entry["count"] >= 37 and named in entry["reason"]


def test_flipped_bits_are_seen_where_the_table_has_checksums(v21):
    file = table_of(v21, 1)
    pq.write_table(pq.read_table(file), file, write_page_checksum=True, compression="none")
    data = bytearray(file.read_bytes())
    data[len(data) // 4] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadEpisode, match="episode_000001.parquet: cannot be read: could not verify page integrity"):
        open_source(v21)[1]


def test_bad_recordings_stop_the_run_at_the_limit(v21):
    video_of(v21, 1).write_bytes(b"")
    with make_loader(v21) as loader, pytest.raises(ValueError, match="max_bad_fraction = 0.001:\n.*the file is empty"):
        for _ in range(9):
            next(loader)


def test_the_span_of_a_chunk_file_must_fit_the_table(v30):
    file = next((v30 / "meta/episodes").rglob("*.parquet"))
    change_column(file, "videos/observation.images.front/from_timestamp", lambda v: set_at(v, 1, v[1] + 0.4 / 15))
    change_column(file, "videos/observation.images.wrist/to_timestamp", lambda v: set_at(v, 2, v[2] - 1 / 15))
    source = open_source(v30)
    source[0].read_frames(np.array([0]))
    source[1].read_frames(np.array([0]))  # off by less than half a frame
    with pytest.raises(BadEpisode, match=r"episode 2: .*wrist.* spans 2.600 s, 40 steps at 15 per second take 2.667 s"):
        source[2]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pattern", ["../../etc/{video_key}", "/etc/passwd", "..\\x{video_key}", "file:///etc/passwd"])
def test_paths_out_of_the_dataset_are_refused(version, pattern, tmp_path):
    shutil.copytree(FIXTURES / version, tmp_path / "x")
    info = json.loads((tmp_path / "x/meta/info.json").read_text())
    (tmp_path / "x/meta/info.json").write_text(json.dumps({**info, "video_path": pattern}))
    with pytest.raises(ValueError, match="video_path leads out of the dataset"):
        open_source(tmp_path / "x")[0]
    (tmp_path / "x/meta/info.json").write_text(json.dumps({**info, "data_path": pattern.replace("{video_key}", "x")}))
    with pytest.raises(ValueError, match="data_path leads out of the dataset"):
        open_source(tmp_path / "x")[0]


@pytest.mark.parametrize("name, content, named", [
    ("info.json", b"{", "info.json is not JSON"),
    ("info.json", b'{"codebase_version": "v1.6"}', "codebase_version = 'v1.6'; formats v2.0, v2.1 and v3.0"),
    ("info.json", b'{"codebase_version": "v2.1"}', "info.json has no 'fps'"),
    ("tasks.jsonl", b'{"task_index": 0, "task": "\xff\xfe"}', "tasks.jsonl is not UTF-8"),
    ("episodes.jsonl", b'{"episode_index": 0, "length": 3}\nx', "episodes.jsonl line 2 is not JSON"),
    ("episodes.jsonl", b'{"episode_index": 0}', "episodes.jsonl line 1 has no 'length'"),
    ("episodes.jsonl", b'{"episode_index": 0, "length": 3}\n' * 2, "an episode_index is there twice"),
])
def test_metadata_that_make_no_sense_are_named(v21, name, content, named):
    (v21 / "meta" / name).write_bytes(content)
    with pytest.raises(ValueError, match=named):
        open_source(v21)


def not_utf8(file: Path, name: str, row: int) -> None:
    """Bytes under the name of a text, as writers that do not look leave them."""
    table = pq.read_table(file)
    values = [b"\xff\xfe" if i == row else b"move" for i in range(len(table))]
    text = pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())
    place = table.column_names.index(name) if name in table.column_names else len(table.column_names)
    pq.write_table(table.append_column(name, text) if place == len(table.column_names)
                   else table.set_column(place, name, text), file)


def test_texts_in_tables_that_are_not_utf8_are_named(v21, v30):
    for episode, row in enumerate((0, 1, 1, 1)):
        not_utf8(table_of(v21, episode), "annotation.text", row)
    info = json.loads((v21 / "meta/info.json").read_text())
    info["features"]["annotation.text"] = {"dtype": "string"}
    (v21 / "meta/info.json").write_text(json.dumps(info))
    source = open_source(v21, instruction="annotation.text")
    assert source[1].instruction == "move"
    with pytest.raises(BadEpisode, match="episode_000000.parquet episode 0: 'annotation.text' is not UTF-8"):
        source[0]
    tasks = v30 / "meta/tasks.parquet"
    not_utf8(tasks, next(n for n in pq.read_table(tasks).column_names if n != "task_index"), 2)
    with pytest.raises(ValueError, match="tasks.parquet cannot be read: .*UTF8"):
        open_source(v30)


def test_no_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no LeRobot dataset in {tmp_path}.*info.json is missing"):
        open_source(tmp_path)


def test_files_that_change_under_a_running_job_are_named(v21):
    source = open_source(v21)
    episode, frames = source[1], source[1].read_frames(np.array([5]))["front"]
    size = video_of(v21, 1).stat().st_size
    shutil.copy(video_of(v21, 1, "wrist"), video_of(v21, 1))
    with pytest.raises(BadEpisode, match=f"episode_000001.mp4: changed under the running job: it was {size} bytes"):
        episode.read_frames(np.array([5]))
    shutil.copy(table_of(v21, 2), table_of(v21, 1))
    with pytest.raises(BadEpisode, match="episode_000001.parquet: changed under the running job"):
        source[1]
    shutil.copy(FIXTURES / "lerobot_v21/data/chunk-000/episode_000001.parquet", table_of(v21, 1))
    again = open_source(v21)[1].read_frames(np.array([5]))["front"]  # another job takes the files as they are
    assert (again != frames).any()
