"""LeRobot v2.0, v2.1 and v3.0: every window's pixels against a plain sequential decode; what does not fit is named.

The datasets were written by lerobot 0.3.3 (v2.1) and 0.4.4 (v3.0). Frame t of episode e has a background of red
40 + 40 e and a disc of blue 4 t mod 255, before AV1; camera `wrist` is `front` turned by 180 degrees.
"""

import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path

import av
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import video
from data_pipelines.embodiments import Dimension, Embodiment
from data_pipelines.episode import BadEpisode
from data_pipelines.loader import Loader
from data_pipelines.samples import Dataset, SampleMaker
from data_pipelines.sources import make_source
from data_pipelines.statistics import compute_statistics
from tests.fake_source import tokenize
from world_model.batch import Layout

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ("lerobot_v21", "lerobot_v30")
LENGTHS = [37, 61, 40, 9]
TASKS = [f"move the disc {where}" for where in ("left", "right", "up", "down")]
FIELDS = {"images": {"front": "observation.images.front", "wrist": "observation.images.wrist"},
          "state": "observation.state", "action": "action"}
ROBOT = Embodiment(
    name="discs", id=9, views=("front", "wrist"), view_layout="side_by_side", rate=15.0,
    state=tuple(Dimension(f"s{i}", i) for i in range(8)),
    action=tuple(Dimension(f"a{i}", i, relative_to=f"s{i}") for i in range(8)))
LAYOUT = Layout(frames=9, height=48, width=128, frames_per_block=2, actions_per_block=24, states_per_block=1)


def open_source(folder, **changes):
    return make_source("lerobot", "discs", path=str(folder), **{**FIELDS, **changes})


def plain_decode(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture(scope="module")
def pixels() -> dict[str, list[dict[str, np.ndarray]]]:
    """Version -> episode -> camera -> all frames, by a sequential decode and the README's lengths."""
    ends, found = np.cumsum(LENGTHS), {}
    v21 = FIXTURES / "lerobot_v21/videos/chunk-000"
    found["lerobot_v21"] = [{c: plain_decode(v21 / f"observation.images.{c}/episode_{e:06d}.mp4")
                             for c in ("front", "wrist")} for e in range(4)]
    whole = {c: plain_decode(FIXTURES / f"lerobot_v30/videos/observation.images.{c}/chunk-000/file-000.mp4")
             for c in ("front", "wrist")}
    found["lerobot_v30"] = [{c: frames[end - length:end] for c, frames in whole.items()}
                            for end, length in zip(ends, LENGTHS)]
    return found


@pytest.fixture
def v21(tmp_path):
    shutil.copytree(FIXTURES / "lerobot_v21", tmp_path / "v21")
    return tmp_path / "v21"


@pytest.fixture
def v30(tmp_path):
    shutil.copytree(FIXTURES / "lerobot_v30", tmp_path / "v30")
    return tmp_path / "v30"


@pytest.mark.parametrize("version", VERSIONS)
def test_episodes_are_as_described(version):
    source = pickle.loads(pickle.dumps(open_source(FIXTURES / version)))
    assert len(source) == 4 and source.lengths().tolist() == LENGTHS and source.rates().tolist() == [15.0] * 4
    for i, length in enumerate(LENGTHS):
        episode, t = source[i], np.arange(length)[:, None]
        assert (episode.length, episode.rate, episode.instruction) == (length, 15.0, TASKS[i])
        assert episode.state.dtype == episode.action.dtype == np.float32
        start = episode.state[:1]
        np.testing.assert_allclose(episode.state, start + 0.01 * t, atol=1e-6)
        np.testing.assert_allclose(episode.action, np.tanh(start + 0.05 * t * np.arange(1, 9) / 8), atol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_pictures_tell_their_frame_and_episode(version):
    """Not by our decoder's word, but by what the pictures show while the disc is in them."""
    source, off = open_source(FIXTURES / version), []  # blue off by 4: one frame
    for e, length in enumerate(LENGTHS):
        for t, front in enumerate(source[e].read_frames(np.arange(length))["front"].astype(int)):
            disc = front[..., 0] > 200
            assert abs(np.median(front[~disc][:, 0]) - (40 + 40 * e)) < 4
            if disc.sum() > 140:
                off.append(np.median(front[disc][:, 2]) - 4 * t % 255)
    assert len(off) > 30 and np.abs(off).max() < 8 and abs(np.mean(off)) < 1


@pytest.mark.parametrize("version", VERSIONS)
def test_every_window_equals_a_sequential_decode(version, pixels):
    dataset = Dataset("discs", open_source(FIXTURES / version), ROBOT)
    dataset = dataclasses.replace(dataset, statistics=compute_statistics(dataset, LAYOUT))
    long_tokenize = lambda prompt: tokenize(prompt[:8])
    maker = SampleMaker(dataset, 0, LAYOUT, long_tokenize, action_dim=32, state_dim=64)
    assert len(maker.windows) == (37 - 24) + (61 - 24) + (40 - 24) + 1
    for window in range(len(maker.windows)):
        index, start = maker.windows[window]
        steps = start + 3 * np.arange(9)
        inside = steps < LENGTHS[index]
        kept = {c: frames[np.minimum(steps, LENGTHS[index] - 1)] for c, frames in pixels[version][index].items()}
        sample = maker(window, 0)
        np.testing.assert_array_equal(sample["video"], np.concatenate([kept["front"], kept["wrist"]], 2))
        np.testing.assert_array_equal(sample["frame_mask"], inside)


def test_only_the_needed_packets_are_decoded(monkeypatch):
    """These files have a key frame every other frame: 9 frames, 3 apart, need 9 + 4 packets of 25."""
    decoded, decode = [], video.VideoReader._decode

    def counted(self, table, needed):
        decoded.append(int(needed.sum()))
        yield from decode(self, table, needed)

    monkeypatch.setattr(video.VideoReader, "_decode", counted)
    source = open_source(FIXTURES / "lerobot_v21", images={"front": "observation.images.front"})
    source[1].read_frames(10 + 3 * np.arange(9))
    assert decoded == [13]


def test_format_2_0_is_2_1_with_statistics_elsewhere(v21, pixels):
    info = json.loads((v21 / "meta/info.json").read_text())
    (v21 / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.0"}))
    (v21 / "meta/episodes_stats.jsonl").unlink()
    frames = open_source(v21)[2].read_frames(np.array([39, 0, 7]))
    np.testing.assert_array_equal(frames["wrist"], pixels["lerobot_v21"][2]["wrist"][[39, 0, 7]])


@pytest.mark.parametrize("version", VERSIONS)
def test_object_stores_are_read_through_fsspec(version, pixels):
    memory = fsspec.filesystem("memory")
    memory.put(str(FIXTURES / version), f"/{version}", recursive=True)
    source = open_source(f"memory://{version}")
    assert source[1].instruction == TASKS[1]
    np.testing.assert_array_equal(source[1].read_frames(np.array([60, 5]))["front"],
                                  pixels[version][1]["front"][[60, 5]])


def test_modality_json_names_slices(v21):
    (v21 / "meta/modality.json").write_text(json.dumps({
        "state": {"joints": {"start": 0, "end": 7}, "gripper": {"original_key": "observation.state", "start": 7, "end": 8}},
        "action": {"gripper": {"start": 7, "end": 8}},
        "video": {"outside": {"original_key": "observation.images.front"}, "wrist": {}},
        "annotation": {"task": {"original_key": "task_index"}}}))
    plain = open_source(FIXTURES / "lerobot_v21")[0]
    named = open_source(v21, images={"a": "outside", "b": "wrist"}, state=["gripper", "joints"], action="gripper",
                        instruction="task")[0]
    np.testing.assert_array_equal(named.state, np.roll(plain.state, 1, axis=1))
    np.testing.assert_array_equal(named.action, plain.action[:, 7:])
    assert named.instruction == TASKS[0] and sorted(named.read_frames(np.array([0]))) == ["a", "b"]
    with pytest.raises(ValueError, match=r"no state 'hand'; modality.json names \['gripper', 'joints'\]"):
        open_source(v21, state="hand")


def test_episodes_are_chosen_by_their_metadata(v21):
    file = v21 / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "success": i % 2 == 1}) + "\n" for i, row in enumerate(rows)))
    source = open_source(v21, where={"success": True})
    assert source.kept().tolist() == [[1, 0, 61], [3, 0, 9]] and source[3].instruction == TASKS[3]
    np.testing.assert_array_equal(open_source(v21, successful=True).kept(), source.kept())
    info = json.loads((v21 / "meta/info.json").read_text())
    (v21 / "meta/info.json").write_text(json.dumps({**info, "discarded_episode_indices": [1]}))
    assert open_source(v21, where={"success": True}).kept().tolist() == [[2, 0, 9]]
    with pytest.raises(ValueError, match="no episode says 'sucess'"):
        open_source(v21, where={"sucess": True})


def table_of(folder: Path, episode: int) -> Path:
    return folder / f"data/chunk-000/episode_{episode:06d}.parquet"


def video_of(folder: Path, episode: int, camera: str = "front") -> Path:
    return folder / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"


def change_column(file: Path, name: str, change) -> None:
    table = pq.read_table(file)
    column = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), file)


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
    "NaN": (lambda f: change_column(f, "action", lambda v: set_at(v, 5, [float("nan"), *v[5][1:]])),
            "action 'a0' is nan at step 5"),
    "null": (lambda f: change_column(f, "action", lambda v: set_at(v, 5, [None, *v[5][1:]])), "'a0' is nan at step 5"),
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
    return Loader([dataset], LAYOUT, lambda prompt: tokenize(prompt[:8]), seed=0, global_batch_size=8, **options)


@pytest.mark.parametrize("spoil, named", [*BAD_TABLES.values()], ids=[*BAD_TABLES])
def test_bad_tables_are_named(v21, spoil, named):
    spoil(table_of(v21, 1))
    with make_loader(v21, max_bad_fraction=9.0) as loader:
        for _ in range(9):
            assert 1 not in next(loader)["episode_index"]
        [(key, entry)] = loader.state()["bad"].items()
    assert key == "discs/1" and entry["count"] >= 37
    assert re.search(named, entry["reason"])


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
    ("episodes.jsonl", b'{"episode_index": 0}', "every episode needs episode_index and length"),
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


@pytest.mark.parametrize("row_group_size", [None, 10])
def test_tables_of_several_episodes_in_several_files(v30, row_group_size, pixels):
    """Episodes 0 and 1 in one file, 2 and 3 in another, in row groups that do not end where episodes do."""
    file = v30 / "data/chunk-000/file-000.parquet"
    table, first = pq.read_table(file), LENGTHS[0] + LENGTHS[1]
    pq.write_table(table.slice(0, first), file, row_group_size=row_group_size)
    pq.write_table(table.slice(first), file.with_name("file-001.parquet"), row_group_size=row_group_size)
    change_column(next((v30 / "meta/episodes").rglob("*.parquet")), "data/file_index", lambda v: [0, 0, 1, 1])
    split, whole = open_source(v30), open_source(FIXTURES / "lerobot_v30")
    for i in range(4):
        np.testing.assert_array_equal(split[i].action, whole[i].action)
        assert split[i].instruction == TASKS[i]
    np.testing.assert_array_equal(split[3].read_frames(np.array([8]))["front"], pixels["lerobot_v30"][3]["front"][[8]])
    pq.write_table(table.slice(first, LENGTHS[2]), file.with_name("file-001.parquet"))  # episode 3 is lost
    with pytest.raises(BadEpisode, match="file-001.parquet: the table has 40 steps, the metadata say 49"):
        open_source(v30)[3]


def long_dataset(folder, length: int):
    """One episode of `length` steps without video."""
    from benchmarks import synthetic_lerobot

    synthetic_lerobot.write(folder, episodes=1, steps=length, dims=8, videos=False)
    return make_source("lerobot", "long", path=str(folder), images={}, state="observation.state", action="action")


@pytest.mark.parametrize("length", [1, 100_000])
def test_very_short_and_very_long_episodes(tmp_path, length):
    source = long_dataset(tmp_path / "long", length)
    dataset = Dataset("long", source, dataclasses.replace(ROBOT, rate=30.0))
    layout = dataclasses.replace(LAYOUT, frames=33)
    whole = Dataset("discs", open_source(FIXTURES / "lerobot_v21"), ROBOT)
    dataset = dataclasses.replace(dataset, statistics=compute_statistics(whole, layout))
    maker = SampleMaker(dataset, 0, layout, lambda p: tokenize(p[:8]), action_dim=32, state_dim=64)
    assert len(maker.windows) == max(1, length - 96) and maker.windows[len(maker.windows) - 1] == (0, max(0, length - 97))
    episode = source[0]
    assert episode.action.shape == (length, 8)
    actions = maker._actions(episode, maker.windows[len(maker.windows) - 1][1])
    assert actions["action_mask"][:, 0].sum() == min(96, length - 1)
