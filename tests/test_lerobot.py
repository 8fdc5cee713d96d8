"""LeRobot v2.0, v2.1 and v3.0: every window's pixels against a plain sequential decode."""

import dataclasses
import json
import pickle
from pathlib import Path

import av
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.dataset import Dataset
from data_pipelines.episode import BadEpisode
from data_pipelines.samples import SampleMaker
from data_pipelines.sources import make_source
from data_pipelines.statistics.compute import compute_statistics
from data_pipelines.video import reading as video
from tests import lerobot_files
from tests.fake_source import tokenize
from tests.lerobot_files import (
    FIXTURES,
    LAYOUT,
    LENGTHS,
    ROBOT,
    TASKS,
    VERSIONS,
    change_column,
    open_source,
)
from world_model.batch import batch_spec


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
    maker = SampleMaker(dataset, 0, LAYOUT, lambda prompt: tokenize(prompt[:8]), fields=lerobot_files.BATCH)
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
    assert source.stretches().tolist() == [[1, 0, 61], [3, 0, 9]] and source[3].instruction == TASKS[3]
    np.testing.assert_array_equal(open_source(v21, successful=True).stretches(), source.stretches())
    info = json.loads((v21 / "meta/info.json").read_text())
    (v21 / "meta/info.json").write_text(json.dumps({**info, "discarded_episode_indices": [1]}))
    assert open_source(v21, where={"success": True}).stretches().tolist() == [[2, 0, 9]]
    with pytest.raises(ValueError, match="no episode says 'sucess'"):
        open_source(v21, where={"sucess": True})


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
    with pytest.raises(BadEpisode, match="file-001.parquet: the table has 0 steps of episode 3, the metadata say 9"):
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
    maker = SampleMaker(dataset, 0, layout, lambda p: tokenize(p[:8]),
                        fields=batch_spec(layout, action_dim=32, state_dim=64, text_length=8))
    assert len(maker.windows) == max(1, length - 96) and maker.windows[len(maker.windows) - 1] == (0, max(0, length - 97))
    episode = source[0]
    assert episode.action.shape == (length, 8)
    actions = maker._actions(episode, maker.windows[len(maker.windows) - 1][1])
    assert actions["action_mask"][:, 0].sum() == min(96, length - 1)
