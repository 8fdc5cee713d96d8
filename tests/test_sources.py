"""Reading RLDS datasets and video files: the asked frames exactly, and bad recordings named."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines.episode import BadEpisode
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.samples import check_episode
from data_pipelines.simulators import recorder
from data_pipelines.simulators.pusht import recording
from data_pipelines.simulators.pusht.simulator import Palette
from data_pipelines.sources import make_source
from data_pipelines.sources.rlds import RldsSource
from data_pipelines.sources.video_files import VideoFilesSource
from data_pipelines.video import pictures

SIZE, STEPS = 32, 10
FIELDS = {"rate": 10.0, "images": {"image": "observation/image"}, "state": "observation/state", "action": "action"}


def png(height: int, width: int) -> bytes:
    return recorder.png(np.zeros((height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def expected():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "MAX_STEPS", STEPS)
        return [recording.record((0, 0, i), SIZE, Palette()) for i in range(2)]


@pytest.fixture(scope="module")
def folder(expected, tmp_path_factory):
    """Episodes 0 and 1 whole; then a NaN action, a NaN state, a small picture, a torn picture, each at step 4."""
    def spoiled(step: int, **changes):
        steps = recorder.rlds_steps(expected[0])
        steps[step] = {**steps[step], **changes}
        return steps

    state, image = np.zeros(2, np.float32), png(SIZE, SIZE)
    out = tmp_path_factory.mktemp("rlds") / "dataset"
    recorder.write_rlds(out, "pusht", SIZE, (2, 2), [
        *(recorder.rlds_steps(r) for r in expected),
        spoiled(4, action=np.array([1, np.nan], np.float32)),
        spoiled(4, observation={"state": state + np.inf, "image": image}),
        spoiled(4, observation={"state": state, "image": png(SIZE, SIZE - 8)}),
        spoiled(4, observation={"state": state, "image": image[:len(image) // 2]})])
    return out


@pytest.fixture(scope="module")
def source(folder):
    return make_source("rlds", "pusht", path=str(folder), **FIELDS)


def test_episodes_come_back_as_recorded(source, expected):
    assert len(source) == 6 and source.rates().tolist() == [10.0] * 6
    assert source.lengths().dtype == np.int64
    assert source.lengths()[:2].tolist() == [len(r.images) for r in expected]
    for i, known in enumerate(expected):
        episode = source[i]
        assert (episode.dataset, episode.index, episode.rate) == ("pusht", i, 10.0)
        assert episode.length == len(known.images) and episode.instruction == known.instruction
        assert episode.state.dtype == episode.action.dtype == np.float32
        np.testing.assert_array_equal(episode.state, known.states)
        np.testing.assert_array_equal(episode.action, known.actions)
        asked = np.array([3, 0, 3, len(known.images) - 1])
        np.testing.assert_array_equal(episode.read_frames(asked)["image"], known.images[asked])


def test_only_the_asked_pictures_are_decoded(source, monkeypatch):
    decoded, decode = [], pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda encoded, where: decoded.append(where) or decode(encoded, where))
    source.lengths()
    episode = source[1]
    assert not decoded
    episode.read_frames(np.array([5, 2, 5]))
    assert [where.split("step ")[1] for where in decoded] == ["2 observation/image", "5 observation/image"]


def test_reading_needs_no_tensorflow(folder):
    code = (f"import sys, numpy as np; from data_pipelines.sources.rlds import RldsSource; "
            f"s = RldsSource('p', {str(folder)!r}, **{FIELDS!r}); s.lengths(); s[0].read_frames(np.arange(3)); "
            f"bad = [m for m in ('tensorflow', 'gym_pusht', 'pygame', 'jax') if m in sys.modules]; assert not bad, bad")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_sources_travel_to_worker_processes(source):
    source.lengths()
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1].action, source[1].action)
    episode = pickle.loads(pickle.dumps(source[1]))
    np.testing.assert_array_equal(episode.read_frames(np.array([1]))["image"],
                                  source[1].read_frames(np.array([1]))["image"])


def test_lengths_are_kept_beside_the_dataset(folder, tmp_path, monkeypatch, caplog):
    here = tmp_path / "dataset"
    shutil.copytree(folder, here)
    kept = here / "lengths-train.json"
    kept.write_text(json.dumps({"shard_lengths": [1], "num_bytes": 7, "lengths": [3]}))  # of another dataset
    lengths = RldsSource("p", str(here), **FIELDS).lengths()
    assert len(lengths) == 6 and json.loads(kept.read_text())["episodes"]["length"] == lengths.tolist()
    with monkeypatch.context() as patch:
        patch.setattr(RldsSource, "_example", lambda *_: pytest.fail("read the records again"))
        np.testing.assert_array_equal(RldsSource("p", str(here), **FIELDS).lengths(), lengths)

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    kept.unlink()
    monkeypatch.setattr(Path, "write_bytes", read_only)
    np.testing.assert_array_equal(RldsSource("p", str(here), **FIELDS).lengths(), lengths)
    assert "Read-only file system" in caplog.text and not kept.exists()


def test_pictures_of_two_sizes_are_named(source):
    source[4].read_frames(np.array([0, 1]))
    with pytest.raises(BadEpisode, match="episode 4 observation/image: the picture of step 4 is 32 x 24, that of step 3"):
        source[4].read_frames(np.array([3, 4]))


def test_torn_pictures_are_named(source):
    with pytest.raises(BadEpisode, match="episode 5 step 4 observation/image: the picture cannot be decoded"):
        source[5].read_frames(np.array([4]))


def test_actions_of_another_width_are_named(source):
    robot = get_embodiment("pusht")
    check_episode(source[0], robot)
    with pytest.raises(BadEpisode, match=r"action.*should be \(\d+, 1\) \(target_x\), found \(\d+, 2\)"):
        check_episode(source[0], dataclasses.replace(robot, action=robot.action[:1]))


@pytest.mark.parametrize("changes, named", [
    ({"action": "actions"}, "no field 'actions'; steps have .*'action'.*'observation/image'"),
    ({"images": {"top": "observation/top"}}, "no field 'observation/top'; steps have"),
    ({"split": "validation"}, r"no split 'validation'; there are \['train'\]")])
def test_fields_that_are_not_there_are_named(folder, changes, named):
    with pytest.raises(BadEpisode, match=named):
        RldsSource("p", str(folder), **{**FIELDS, **changes})[0]


def test_no_dataset_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no TFDS dataset in"):
        RldsSource("p", str(tmp_path), **FIELDS)
    with pytest.raises(FileNotFoundError, match=f"there is one in {folder}"):
        RldsSource("p", str(folder.parent), **FIELDS)


def test_records_cut_short_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "torn", ignore=shutil.ignore_patterns("lengths*"))
    records = next((tmp_path / "torn").glob("*array_record*"))
    records.write_bytes(records.read_bytes()[:-5000])
    source = RldsSource("p", str(tmp_path / "torn"), **FIELDS)
    assert source.lengths().tolist() == [1] * 6  # to be drawn and reported, not forgotten
    assert not list((tmp_path / "torn").glob("lengths*"))
    with pytest.raises(BadEpisode, match="torn split train episode 0: the record cannot be read"):
        source[0]


def write_video(file: Path, frames: int, rate: int, **options) -> None:
    """Frame i is a grey of its own with a moving square."""
    with av.open(str(file), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10", "g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(frames):
            image = np.full((24, 32, 3), 5 * i, np.uint8)
            image[4:12, i % 24:i % 24 + 8] = (255, 0, 128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Files in the order of their names: whole ones, then bad ones."""
    out = tmp_path_factory.mktemp("videos")
    write_video(out / "a.mp4", 40, 10)
    write_video(out / "b.mp4", 33, 25)
    write_video(out / "c.mkv", 30, 30)
    write_video(out / "d_torn.mp4", 40, 10, movflags="faststart")  # header first: it promises all frames
    whole = (out / "d_torn.mp4").read_bytes()
    (out / "d_torn.mp4").write_bytes(whole[:len(whole) * 2 // 3])
    (out / "e_headless.mp4").write_bytes((out / "a.mp4").read_bytes()[:2000])
    (out / "f_empty.mp4").write_bytes(b"")
    (out / "h_text.mp4").write_text("no video")
    lines = [{"file": "a.mp4", "caption": "a square moves"}, {"file": "g_gone.mp4", "caption": "lost"}]
    (out / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


@pytest.fixture(scope="module")
def clips(videos):
    return make_source("video_files", "clips", path=str(videos))


def test_clips_tell_their_length_and_rate(clips):
    assert clips.lengths().tolist() == [40, 33, 30, 40, 1, 1, 1, 1]  # 1: unreadable, and to be reported when drawn
    assert clips.rates()[:4].tolist() == [10, 25, 30, 10]
    assert [clips[i].instruction for i in range(2)] == ["a square moves", ""]
    assert clips[0].state is None and clips[0].action is None
    assert pickle.loads(pickle.dumps(clips))[1].length == 33


@pytest.mark.parametrize("index", range(3))
def test_frames_are_those_of_a_sequential_decode(clips, index):
    with av.open(str(clips.files[index])) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    episode, rng = clips[index], np.random.default_rng(index)
    assert episode.length == len(frames)
    for asked in [np.arange(len(frames)), np.array([len(frames) - 1]), *rng.integers(0, len(frames), (6, 5))]:
        np.testing.assert_array_equal(episode.read_frames(asked)["image"], frames[asked])


@pytest.mark.parametrize("index, named", [
    (4, "e_headless.mp4: cannot be opened"), (5, "f_empty.mp4: the file is empty"),
    (6, "g_gone.mp4: no such file"), (7, "h_text.mp4: cannot be opened")])
def test_unreadable_videos_are_named(clips, index, named):
    with pytest.raises(BadEpisode, match=named):
        clips[index]


def test_a_video_cut_short_gives_what_there_is_and_names_what_is_not(clips):
    episode = clips[3]
    assert episode.read_frames(np.array([0, 1]))["image"].shape == (2, 24, 32, 3)
    with pytest.raises(BadEpisode, match="d_torn.mp4: (frame 39 of 40 )?cannot be decoded"):
        episode.read_frames(np.array([0, 39]))


def test_folders_without_videos_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="dataset 'clips': no .mp4, .webm, .mkv file in"):
            VideoFilesSource("clips", str(path))
