"""LeRobot metadata as they are found: incomplete, unfinished, edited by other tools. What can be read is; what cannot is
named with its file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.episode import BadEpisode
from data_pipelines.storage import tables
from tests import lerobot_files
from tests.lerobot_files import FIXTURES, LENGTHS, TASKS, VERSIONS, change_column, open_source, table_of

WRIST = [f"videos/observation.images.wrist/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]


def episodes_of(folder):
    return folder / "meta/episodes/chunk-000/file-000.parquet"


@pytest.mark.parametrize("column", [*WRIST, "data/chunk_index", "data/file_index", "length"])
def test_a_null_costs_one_episode(v30, column):
    change_column(episodes_of(v30), column, lambda values: [None if i == 2 else v for i, v in enumerate(values)])
    source = open_source(v30)
    for i in (0, 1, 3):
        assert len(source[i].action) == source.lengths()[i] == LENGTHS[i]
        assert source[i].read_frames(np.array([LENGTHS[i] - 1]))["wrist"].shape == (1, 48, 64, 3)
    with pytest.raises(BadEpisode, match=f"episode 2: .*file-000.parquet does not say its {column}: None"):
        source[2]
    assert source.stretches()[:, 0].tolist() == [0, 1, 2, 3]  # to be drawn and reported


@pytest.mark.parametrize("gone", [WRIST, WRIST[2:3], ["data/chunk_index"], ["length"], ["episode_index"]])
def test_a_missing_column_is_named_with_its_file(v30, gone):
    pq.write_table(pq.read_table(episodes_of(v30)).drop_columns(gone), episodes_of(v30))
    with pytest.raises(ValueError, match=f"meta/episodes/chunk-000/file-000.parquet has no column '{gone[0]}'"):
        open_source(v30)
    if gone[0].startswith("videos"):
        assert open_source(v30, images={"front": "observation.images.front"})[0].length == 37


def test_datasets_without_episodes_are_named(v30, v21):
    table = pq.read_table(episodes_of(v30))
    pq.write_table(table.slice(0, 0), episodes_of(v30))
    with pytest.raises(ValueError, match=r"file-000.parquet: no episode is there"):
        open_source(v30)
    shutil.rmtree(v30 / "meta/episodes")
    with pytest.raises(ValueError, match=f"{v30}/meta/episodes: no parquet file: the recording was never finished"):
        open_source(v30)
    (v21 / "meta/episodes.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="episodes.jsonl: no episode is there"):
        open_source(v21)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["set [v2]", "a*b?", "runs::1", "10:30", "data:x", "{0}"])
def test_a_folders_name_means_nothing(tmp_path, version, name):
    folder = lerobot_files.copied(version, tmp_path / name)
    assert [open_source(folder)[i].instruction for i in range(4)] == TASKS
    assert open_source(folder)[1].read_frames(np.array([3]))["wrist"].shape == (1, 48, 64, 3)


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085", "\u000c", "\u001e"])
def test_only_a_line_feed_ends_a_line(v21, end):
    for name in ("tasks.jsonl", "episodes.jsonl"):
        rows = [json.loads(line) for line in (v21 / "meta" / name).read_text().split("\n") if line]
        text = "\r\n".join(json.dumps(row, ensure_ascii=False).replace("the disc", f"the{end}disc") for row in rows)
        if end > "\u001f":  # others are escaped in JSON
            (v21 / "meta" / name).write_text("\ufeff" + text, "utf-8")
    assert open_source(v21)[2].instruction == (TASKS[2].replace("the disc", f"the{end}disc") if end > "\u001f" else TASKS[2])


@pytest.mark.parametrize("name, content, named", [
    ("episodes.jsonl", '{"episode_index": null, "length": 3}', "line 1: episode_index = None: expected a number"),
    ("episodes.jsonl", '{"episode_index": 0.5, "length": 3}', "episode_index of row 0 is 0.5"),
    ("episodes.jsonl", '{"episode_index": 0, "length": 3}\n{"episode_index": [0], "length": 3}', "line 2: episode_index"),
    ("episodes.jsonl", '{"episode_index": 10000000000000000000000, "length": 3}', "episode_index = 1000"),
    ("episodes.jsonl", '{"episode_index": 0, "length": NaN}', "length = nan"),
    ("episodes.jsonl", '{"episode_index": 0, "length": 1099511627776}', "length = 1099511627776"),
    ("episodes.jsonl", '{"episode_index": 0, "length": 3, "tasks": 1}', "tasks = 1: expected a list"),
    ("episodes.jsonl", "[" * 100000, "line 1 is not JSON"), ("episodes.jsonl", "[[]]", r"line 1 = \[\[\]\]: expected a map"),
    ("episodes.jsonl", "null", "line 1 = None: expected a map"),
    ("tasks.jsonl", '{"task_index": "a", "task": "b"}', "task_index = 'a': expected a whole number"),
    ("tasks.jsonl", '{"task_index": 0}', "has no 'task'"), ("tasks.jsonl", "3", "line 1 = 3: expected a map"),
    ("info.json", "[]", r"info.json = \[\]: expected a map"), ("info.json", "[" * 100000, "info.json is not JSON"),
    ("modality.json", "[1]", r"modality.json = \[1\]: expected a map"),
    ("modality.json", '{"state": {"a": {"start": -1}}}', "state: a: start = -1: expected a whole number"),
    ("stats.json", "null", "stats.json = None: expected a map")])
def test_metadata_of_other_kinds_are_named(v21, name, content, named):
    (v21 / "meta" / name).write_text(content)
    with pytest.raises(ValueError, match=named):
        open_source(v21)


@pytest.mark.parametrize("change, named", [
    ({"fps": 0}, "fps = 0: expected"), ({"fps": None}, "fps = None: expected"), ({"fps": "x"}, "fps = 'x': expected"),
    ({"fps": 1e400}, "fps = inf"), ({"chunks_size": 0}, "chunks_size = 0: expected"), ({"features": []}, r"features = \[\]"),
    ({"features": {"observation.images.front": None}}, "observation.images.front"),
    ({"data_path": 3}, "data_path = 3"), ({"video_path": "{episode_index:0300000000d}"}, "video_path"),
    ({"video_path": "{episode_index.__class__}"}, "video_path"), ({"data_path": "{"}, "data_path = '{' is no pattern"),
    ({"data_path": "a}"}, "data_path = 'a}' is no pattern"), ({"data_path": "{episode_index!r:>999999999}"}, "data_path"),
    ({"discarded_episode_indices": 3}, "discarded_episode_indices")])
def test_a_value_of_info_that_makes_no_sense_is_named(v21, change, named):
    info = json.loads((v21 / "meta/info.json").read_text())
    (v21 / "meta/info.json").write_text(json.dumps({**info, **change}))
    with pytest.raises(ValueError, match=named):
        open_source(v21)[0]


def test_a_length_of_nothing_is_not_the_tables(v21):
    """A length of 0 was taken for one that is not told."""
    file = v21 / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('"length": 61', '"length": 0'))
    with pytest.raises(BadEpisode, match="episode_000001.parquet: the table has 61 steps, the metadata say 0"):
        open_source(v21)[1]


def test_row_groups_that_are_not_the_tables_rows_are_named(v21, monkeypatch):
    """A damaged footer made every column a row shorter than the episode."""
    monkeypatch.setattr(tables, "_rows", lambda footer, groups: 60)
    with pytest.raises(BadEpisode, match="episode_000001.parquet: .* it holds 60 rows, its footer says 61"):
        open_source(v21)[1]


def test_tables_that_claim_too_many_rows_are_not_decoded(v30, v21, monkeypatch):
    """Ten million equal rows are a few kilobytes; here the limit is low instead."""
    monkeypatch.setattr(tables, "MAX_ROWS", 60)
    file = v30 / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file), file)
    with pytest.raises(BadEpisode, match="data/chunk-000/file-000.parquet.* 147 rows at once, at most 60 are expected"):
        open_source(v30)[0]
    pq.write_table(pa.concat_tables([pq.read_table(v30 / "meta/tasks.parquet")] * 30), v30 / "meta/tasks.parquet")
    with pytest.raises(ValueError, match="tasks.parquet cannot be read: 120 rows at once"):
        open_source(v30)
    pq.write_table(pa.concat_tables([pq.read_table(table_of(v21, 1))] * 9), table_of(v21, 1))
    with pytest.raises(BadEpisode, match="episode_000001.parquet: the table has 549 steps, the metadata say 61"):
        open_source(v21)[1]


def written(file: Path, **columns) -> str:
    pq.write_table(pa.table(columns), file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 1e6
    return str(file)


def test_small_files_of_huge_tables_are_not_decoded(tmp_path, monkeypatch):
    """What the footer tells, and texts that stand once in the file and a hundred thousand times in the table."""
    rows = np.zeros(10_000_000, np.int8)
    text = pa.DictionaryArray.from_arrays(rows[:60_000], pa.array(["x" * 100_000]))
    offsets = np.linspace(0, 60_000, 3).astype(np.int32)
    wide = pa.ListArray.from_arrays([0, 2**16 + 1], pa.array(np.zeros(2**16 + 1, np.int8)))
    for named, columns in {"10,000,000 rows at once": {"a": rows}, "6,000,000,000 bytes or more": {"a": text},
                           "6,000,000,000 bytes or more at once": {"a": pa.ListArray.from_arrays(offsets, text)},
                           "bytes or more at once, at most 65,536": {"a": wide}}.items():
        file = written(tmp_path / "bomb.parquet", **columns)
        monkeypatch.setattr(tables, "MAX_BYTES", 2**16 if columns["a"] is wide else 2**31)
        taken = pa.total_allocated_bytes()
        with pytest.raises(ValueError, match=f"bomb.parquet cannot be read: .*{named}"):
            tables.read_parquet(file)
        assert pa.total_allocated_bytes() - taken < 2**24


def test_tables_are_read_without_threads():
    """A thread of Arrow's that lets a Python file go while the interpreter ends aborts a command after its sentence."""
    code = """
import pathlib
from data_pipelines.storage.tables import read_parquet
from tests.lerobot_files import FIXTURES, open_source

def threads():
    names = [file.read_text() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
    return len([name for name in names if "jemalloc" not in name])

before = threads()
read_parquet(str(FIXTURES / "lerobot_v30/meta/episodes/chunk-000/file-000.parquet"))
open_source(FIXTURES / "lerobot_v30")[1]
assert threads() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_one_of_several_tasks_may_be_asked_for(v30):
    assert open_source(v30, where={"tasks": "*left"}).stretches()[:, 0].tolist() == [0]
    assert open_source(v30, where={"tasks": ["*left", "*up"]}).stretches()[:, 0].tolist() == [0, 2]
    assert open_source(FIXTURES / "lerobot_v21", where={"tasks": "*right"}).stretches()[:, 0].tolist() == [1]
    assert open_source(v30, where={"episode_index": [1, 3]}).stretches()[:, 0].tolist() == [1, 3]


def test_tasks_may_be_null(v30):
    change_column(episodes_of(v30), "tasks", lambda values: [None, *values[1:]])
    change_column(v30 / "meta/tasks.parquet", "__index_level_0__", lambda values: [None, *values[1:]])
    assert open_source(v30, described=True).stretches()[:, 0].tolist() == [1, 2, 3]
    assert [open_source(v30)[i].instruction for i in range(2)] == ["", TASKS[1]]


def test_statistics_may_be_told_in_part(v30):
    told = json.loads((v30 / "meta/stats.json").read_text())
    del told["action"]["std"]
    told["observation.state"]["mean"] = None
    (v30 / "meta/stats.json").write_text(json.dumps(told))
    source = open_source(v30)
    assert sorted(source.published("action")) == ["max", "mean", "min"]
    assert sorted(source.published("state")) == ["max", "min", "std"]
    told["action"]["min"] = {"a": 1}
    (v30 / "meta/stats.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="stats.json: min of action is no list of numbers"):
        open_source(v30).published("action")
    (v30 / "meta/stats.json").write_text(json.dumps({**told, "action": [1], "note": "by hand"}))
    with pytest.raises(ValueError, match=r"stats.json: action = \[1\]: expected a map"):
        open_source(v30).published("action")
