"""Which frame belongs to which step, where frame counts, the table's time stamps and the metadata's say different things."""

import json
import logging
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.episode import BadEpisode
from tests import lerobot_files, video_clips
from tests.lerobot_files import FIXTURES, LENGTHS, change_column, open_source, table_of
from tests.video_clips import number

RATE = 15


@pytest.fixture
def v30(tmp_path):
    return lerobot_files.copied("lerobot_v30", tmp_path)


@pytest.fixture(scope="module")
def right():
    """episode -> frames of the wrist camera."""
    source = open_source(FIXTURES / "lerobot_v30")
    return [source[i].read_frames(np.arange(length))["wrist"] for i, length in enumerate(LENGTHS)]


def episodes_of(folder):
    return folder / "meta/episodes/chunk-000/file-000.parquet"


def shift(folder, episode: int, frames: float, sides=("from", "to"), camera="wrist") -> None:
    for side in sides:
        change_column(episodes_of(folder), f"videos/observation.images.{camera}/{side}_timestamp",
                      lambda values: [v + (i == episode) * frames / RATE for i, v in enumerate(values)])


def test_an_offset_does_not_shift_what_counts_tell(v30, right, caplog):
    shift(v30, 1, 0.6)
    open_source(v30)[0].read_frames(np.arange(3))
    assert not caplog.text
    episode = open_source(v30)[1]
    np.testing.assert_array_equal(episode.read_frames(np.arange(61))["wrist"], right[1])
    [said] = episode.disagreements()
    assert "wrist/chunk-000/file-000.mp4: the time stamp of" in said and "0.040 s, or 0.6 steps, off its frame's" in said
    assert said in caplog.text
    assert open_source(v30)[0].disagreements() == []


def test_durations_that_are_added_up_do_not_shift(v30, right):
    """Each episode's time is told a third of a frame late, on top of those before it: up to a whole frame."""
    for episode in range(1, 4):
        shift(v30, episode, episode / 3)
    source = open_source(v30)
    for i, frames in enumerate(right):
        np.testing.assert_array_equal(source[i].read_frames(np.arange(LENGTHS[i]))["wrist"], frames)


def test_one_stale_entry_spoils_no_other(v30, right):
    """Episode 3 names a place where another episode lies; then a table row that is not there; then no place at all."""
    start = episodes_of(v30).read_bytes()
    shift(v30, 3, -RATE * 9.2)
    source = open_source(v30)
    for i in range(3):
        np.testing.assert_array_equal(source[i].read_frames(np.arange(LENGTHS[i]))["wrist"], right[i])
    with pytest.raises(BadEpisode, match="begins at 0.000 s, by the frames of those before it at 9.200 s"):
        source[3].read_frames(np.arange(3))
    episodes_of(v30).write_bytes(start)
    for column, value in (("dataset_from_index", -500), ("length", 12), ("videos/observation.images.wrist/file_index", 7)):
        episodes_of(v30).write_bytes(start)
        change_column(episodes_of(v30), column, lambda values, value=value: [value, *values[1:]])
        source = open_source(v30)
        for i in range(1, 4):
            np.testing.assert_array_equal(source[i].read_frames(np.arange(LENGTHS[i]))["wrist"], right[i])
            assert len(source[i].action) == LENGTHS[i]


def test_times_decide_where_counts_do_not_fit_and_say_where_they_cannot(v30, right):
    """Metadata of three episodes, a video of four."""
    whole = pq.read_table(episodes_of(v30))
    pq.write_table(pa.concat_tables([whole.slice(0, 1), whole.slice(2)]), episodes_of(v30))
    source = open_source(v30)
    np.testing.assert_array_equal(source[1].read_frames(np.arange(40))["wrist"], right[2])
    for late, fine in ((0.2, True), (-0.2, True), (0.4, False), (0.6, False)):
        pq.write_table(pa.concat_tables([whole.slice(0, 1), whole.slice(2)]), episodes_of(v30))
        shift(v30, 1, late)
        episode = open_source(v30)[1]
        if fine:
            np.testing.assert_array_equal(episode.read_frames(np.arange(40))["wrist"], right[2])
        else:
            with pytest.raises(BadEpisode, match=r"of a frame off the nearest frame, and the file's 147 frames are not the 86"):
                episode.read_frames(np.arange(40))


@pytest.mark.parametrize("rate, called", [(Fraction(30000, 1001), 30), (Fraction(24000, 1001), 24), (25, 25)])
def test_a_rate_that_is_called_otherwise(tmp_path, caplog, rate, called):
    """1200 frames of 29.97 Hz under 1200 steps of 30 Hz are frame for frame."""
    folder, steps = lerobot_files.copied("lerobot_v21", tmp_path), 1200
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps({**info, "fps": called}))
    (folder / "meta/episodes.jsonl").write_text(json.dumps({"episode_index": 0, "tasks": ["x"], "length": steps}))
    columns = {"observation.state": [[0.0] * 8] * steps, "action": [[0.0] * 8] * steps, "task_index": [0] * steps,
               "timestamp": [i / called for i in range(steps)], "episode_index": [0] * steps}
    pq.write_table(pa.table(columns), table_of(folder, 0))
    video_clips.write(lerobot_files.video_of(folder, 0), steps, rate=rate, options={"g": "50", "preset": "ultrafast"})
    episode, asked = open_source(folder, images={"a": "observation.images.front"})[0], np.arange(0, steps, 37)
    with caplog.at_level(logging.WARNING):
        shown = [number(frame) for frame in episode.read_frames(asked)["a"]]
    assert shown == (asked % 256).tolist()
    assert ("1.2 steps, off its frame's" in caplog.text) == (rate != 25) == bool(episode.disagreements())
