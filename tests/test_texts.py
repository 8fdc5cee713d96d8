"""The instruction of a window is that of its first step, wherever an episode's text changes and however it is stored."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.episode import BadEpisode
from data_pipelines.samples import SampleMaker
from data_pipelines.sources import make_source
from data_pipelines.sources.texts import text, texts_of
from data_pipelines.statistics.compute import compute_statistics
from tests import lerobot_files
from tests.lerobot_files import LAYOUT, ROBOT, TASKS, VERSIONS, change_column, open_source, table_of


def prompts(source, **options) -> dict[tuple[int, int], str]:
    """(episode, start) -> prompt of every window."""
    asked = []
    dataset = Dataset("discs", source, ROBOT)
    dataset = Dataset("discs", source, ROBOT, statistics=compute_statistics(dataset, LAYOUT))
    maker = SampleMaker(dataset, 0, LAYOUT, lambda prompt: asked.append(prompt) or (np.zeros(8, np.int32), 1),
                        fields={name: lerobot_files.BATCH[name] for name in ("text_ids", "text_length")}, **options)
    for window in range(len(maker.windows)):
        maker(window, 0)
    return {maker.windows[i]: asked[i] for i in range(len(asked))}


def steps_of(folder, version: str, episode: int):
    """(table, first row) of an episode."""
    if version == "lerobot_v21":
        return table_of(folder, episode), 0
    return folder / "data/chunk-000/file-000.parquet", sum(lerobot_files.LENGTHS[:episode])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_task_that_changes_on_the_way(tmp_path, version):
    """Episode 1: task 1, from step 20 on task 3, from step 30 on task 0."""
    folder = lerobot_files.copied(version, tmp_path)
    file, first = steps_of(folder, version, 1)
    change_column(file, "task_index", lambda v: [*v[:first + 20], *[3] * 10, *[0] * 31, *v[first + 61:]])
    source = open_source(folder)
    assert source[1].instructions == ((0, TASKS[1]), (20, TASKS[3]), (30, TASKS[0]))
    found = prompts(source)
    for (episode, start), prompt in found.items():
        expected = episode if episode != 1 else 1 if start < 20 else 3 if start < 30 else 0
        assert prompt == TASKS[expected], (episode, start)
    assert {start for episode, start in found if episode == 1} >= {0, 19, 20, 29, 30}


def test_a_task_that_is_unknown_costs_the_windows_that_begin_in_it(tmp_path):
    folder = lerobot_files.copied("lerobot_v21", tmp_path)
    change_column(table_of(folder, 1), "task_index", lambda v: [*v[:20], *[99] * 10, *v[30:]])
    episode = open_source(folder)[1]
    assert [episode.instruction_at(step) for step in (19, 30)] == [TASKS[1]] * 2
    with pytest.raises(BadEpisode, match="episode_000001.parquet episode 1 step 20: task_index = 99 is none of the 4 tasks"):
        episode.instruction_at(25)


def with_column(folder, column: pa.Array) -> None:
    """A column of texts in episode 1; the others are empty."""
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["said"] = {"dtype": "string"}
    (folder / "meta/info.json").write_text(json.dumps(info))
    for episode, length in enumerate(lerobot_files.LENGTHS):
        table = pq.read_table(table_of(folder, episode))
        values = column if episode == 1 else pa.array([None] * length, column.type)
        pq.write_table(table.append_column("said", values), table_of(folder, episode))


@pytest.mark.parametrize("make", [
    lambda said: pa.array(said), lambda said: pa.array([[*each.encode(), 0, 0] for each in said], pa.list_(pa.int32())),
    lambda said: pa.array([each.encode() for each in said], pa.binary()), lambda said: pa.array(said).dictionary_encode()],
    ids=["text", "numbers of bytes", "bytes", "dictionary"])
def test_texts_in_the_table(tmp_path, make):
    """Empty at first, then said, then another."""
    folder = lerobot_files.copied("lerobot_v21", tmp_path)
    with_column(folder, make([""] * 3 + ["héb auf"] * 30 + ["leg ab"] * 28))
    source = open_source(folder, instruction="said")
    assert source[1].instructions == ((0, "héb auf"), (33, "leg ab"))
    assert source[0].instruction == "" and source[1].instruction == "héb auf"
    described = open_source(folder, instruction="said", described=True)
    assert described.stretches()[:, 0].tolist() == [1]


def test_texts_of_steps():
    assert texts_of(["", "", "a", "a", "", "b"], text, "w") == ((0, "a"), (4, ""), (5, "b"))
    assert texts_of(["", ""], text, "w") == ((0, ""),)
    numbers = np.zeros((4, 8), np.int32)
    numbers[:2, :4], numbers[2:, :3] = list(b"push"), list(b"lay")
    assert texts_of(numbers, text, "w") == ((0, "push"), (2, "lay"))
    with pytest.raises(BadEpisode, match="w: the instruction is no text: 3.5"):
        texts_of([3.5], text, "w")
    for value in (np.array([300]), np.array([-1]), ["a", "b"], [], np.array([1.0]), b"\xff"):
        with pytest.raises(ValueError, match="byte|no text|UTF-8"):
            text(value)


def test_captions_of_clips_hold_throughout(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"file": "a.mp4", "caption": "x"}\n')
    from tests import video_clips

    video_clips.write(tmp_path / "a.mp4", 3)
    assert make_source("video_files", "c", path=str(tmp_path / "list.jsonl"))[0].instruction_at(2) == "x"
