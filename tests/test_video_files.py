"""Clips: folders and lists, every codec and container, rotated and of a variable rate, from an object store too."""

import json
import struct

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.episode import BadEpisode
from data_pipelines.sources import make_source
from tests.test_video import KINDS, plain_decode, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip of every kind, 20 frames at 10 Hz."""
    out = tmp_path_factory.mktemp("clips")
    for name, encoder, options in KINDS.values():
        write(out / name, encoder, options, 100 * np.arange(20))
    write(out / "g.mkv", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, 100 * np.arange(20))
    (out / "h_variable.mp4").write_bytes(b"")
    write(out / "h_variable.mp4", "libx264", {"g": "5"}, np.cumsum(np.random.default_rng(0).choice([40, 80, 200], 20)))
    return out


def test_every_kind_is_read_as_it_decodes(folder):
    clips = make_source("video_files", "clips", path=str(folder))
    assert len(clips) == 8 and {file.rpartition(".")[2] for file in clips.files} == {"mp4", "mkv", "webm"}
    for i in range(7):
        frames, _ = plain_decode(clips.files[i])
        assert (clips[i].length, clips[i].rate) == (20, 10.0) == (clips.lengths()[i], clips.rates()[i])
        asked = np.array([0, 19, 7, 7])
        np.testing.assert_array_equal(clips[i].read_frames(asked)["image"], frames[asked])


def test_a_variable_rate_is_evened_out(folder):
    clip = make_source("video_files", "clips", path=str(folder))[7]
    frames, times = plain_decode(folder / "h_variable.mp4")
    assert clip.length == 20 and clip.rate == pytest.approx(19 / times[-1], rel=0.1)
    asked = np.arange(clip.length)
    nearest = np.abs(times[:, None] - asked / clip.rate).argmin(0)
    np.testing.assert_array_equal(clip.read_frames(asked)["image"], frames[nearest])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_rotated_clip_stands_upright(folder, tmp_path, turns):
    """Turned by the display matrix of its track header, as phones do; 64 x 64 pixels stay square."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    data = bytearray((folder / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 44  # version 0: the matrix begins 40 bytes after the version
    data[at:at + 20] = struct.pack(">5i", cos << 16, sin << 16, 0, -sin << 16, cos << 16)
    (tmp_path / "turned.mp4").write_bytes(data)
    frames, _ = plain_decode(folder / "a.mp4")
    found = make_source("video_files", "clips", path=str(tmp_path))[0].read_frames(np.array([3, 15]))["image"]
    np.testing.assert_array_equal(found, np.rot90(frames[[3, 15]], -turns, (1, 2)))  # clockwise, as a viewer shows it


@pytest.mark.parametrize("name", ["list.jsonl", "list.parquet"])
def test_lists_name_files_and_captions(folder, name):
    rows = [{"file": "e.webm", "caption": "a bar moves"}, {"file": "a.mp4", "caption": None},
            {"file": "sub/gone.mp4", "caption": "lost"}]
    if name.endswith(".jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    clips = make_source("video_files", "clips", path=str(folder / name))
    assert [clips[i].instruction for i in (0, 1)] == ["", "a bar moves"] and len(clips) == 3
    with pytest.raises(BadEpisode, match="sub/gone.mp4: no such file"):
        clips[2]
    described = make_source("video_files", "clips", path=str(folder / name), described=True)
    assert described.stretches().tolist() == [[1, 0, 20], [2, 0, 1]]


@pytest.mark.parametrize("content, named", [
    (b'{"file": "../a.mp4", "caption": ""}', "row 1: '../a.mp4' leads out of the folder"),
    (b'{"file": "/etc/passwd"}', "row 1: '/etc/passwd' leads out"), (b'{"file": "x://a.mp4"}', "leads out"),
    (b'{"name": "a.mp4"}', "row 1 has no 'file'"), (b"[1]", r"row 1 = \[1\]: expected a map"),
    (b'{"file": "a.mp4"}\n{', "list.jsonl line 2 is not JSON"), (b"\xff\xfe", "list.jsonl is not UTF-8"),
])
def test_lists_that_make_no_sense_are_named(tmp_path, content, named):
    (tmp_path / "list.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        make_source("video_files", "clips", path=str(tmp_path / "list.jsonl"))
    (tmp_path / "list.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="list.parquet cannot be read"):
        make_source("video_files", "clips", path=str(tmp_path / "list.parquet"))


def test_object_stores(folder):
    memory = fsspec.filesystem("memory")
    for name in ("a.mp4", "e.webm"):
        memory.put(str(folder / name), f"/clips/{name}")
    memory.pipe("/clips/captions.jsonl", b'{"file": "e.webm", "caption": "a bar moves"}\n')
    remote, local = (make_source("video_files", "clips", path=path) for path in ("memory://clips", str(folder)))
    assert [remote[i].instruction for i in (0, 1)] == ["", "a bar moves"] and remote.lengths().tolist() == [20, 20]
    np.testing.assert_array_equal(remote[1].read_frames(np.array([4]))["image"], local[4].read_frames(np.array([4]))["image"])
    listed = make_source("video_files", "clips", path="memory://clips/captions.jsonl")
    assert len(listed) == 1 and listed[0].instruction == "a bar moves"


def test_clips_have_no_metadata_to_choose_by(folder):
    with pytest.raises(ValueError, match="clips carry no metadata"):
        make_source("video_files", "clips", path=str(folder), successful=True)
