"""Clips as cameras, browsers and editors write them: any frame that a player shows comes back equal to what it shows,
and their number is that of the player. Damage is still named."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines.episode import BadEpisode
from data_pipelines.sources import make_source
from data_pipelines.video import reading as video
from tests.video_clips import OPEN, number, picture, played, remux, with_edits, with_matrix, write

STRIP_SEI = "filter_units=remove_types=6"


def marked(file):
    """Every packet called a key frame, as muxers do that write no list of them."""
    file.write_bytes(file.read_bytes().replace(b"stss", b"free"))
    return file


def odd(folder) -> dict:
    """name -> clip."""
    def new(name):
        return folder / name

    plain = write(new("plain.mp4"), 40)
    leading = write(new("open.mp4"), 40, options=OPEN)
    refresh = {"g": "10", "bf": "0", "intra-refresh": "1"}
    refreshed = write(new("refresh.mp4"), 40, options=refresh)
    hevc = write(new("hevc.mp4"), 40, "libx265", {"x265-params": "keyint=8:open-gop=1:bframes=3:log-level=none"})
    vp8 = write(new("vp8.webm"), 40, "libvpx", {"deadline": "realtime", "g": "15"})
    keys = [9, 19]  # packets with which open groups begin
    return {
        "open groups": leading, "open groups, Matroska": remux(leading, new("open.mkv")),
        "open groups, cut at one": remux(leading, new("cut.mkv"), lambda i: i >= keys[0]),
        "open groups, cut inside one": remux(leading, new("inside.mkv"), lambda i: i >= 4),
        "open groups, no recovery points": marked(remux(leading, new("silent.mp4"), strip=STRIP_SEI)),
        "intra refresh": refreshed, "intra refresh, marked": marked(remux(refreshed, new("marked.mp4"))),
        "intra refresh, cut": remux(refreshed, new("refresh_cut.mp4"), lambda i: i >= 11),
        "hevc, cut at an open group": remux(hevc, new("hevc.mkv"), lambda i: i >= 6),
        "mpeg4, B frames": write(new("m.mp4"), 30, "mpeg4", {"g": "10", "bf": "2"}),
        "mpeg4, marked": marked(write(new("mm.mp4"), 30, "mpeg4", {"g": "10", "bf": "2"})),
        "av1, marked": marked(write(new("av1.mp4"), 30, "libsvtav1", {"g": "8", "preset": "12"})),
        "vp9, marked": marked(write(new("vp9.mp4"), 30, "libvpx-vp9", {"g": "8", "deadline": "realtime", "cpu-used": "8"})),
        "hevc, marked": marked(remux(hevc, new("hevc_marked.mp4"))),
        "mpeg2, B frames, cut": remux(write(new("m2.mkv"), 30, "mpeg2video", {"g": "10", "bf": "2"}), new("m2_cut.mkv"),
                                      lambda i: i >= 8),
        "hidden frames": remux(vp8, new("hidden.webm"), change=lambda i, data: bytes([data[0] & ~0x10]) + data[1:]
                               if i in (7, 20, 39) else data),
        "cut before a key frame": remux(vp8, new("late.webm"), lambda i: i >= 5),
        "edited": with_edits(plain, new("edited.mp4"), (1500, 13)),
        "edited inside a frame": with_edits(leading, new("halves.mp4"), (1520, 13)),
        "starts late": with_edits(plain, new("late.mp4"), (700, -1), (2000, 0)),
        "edited twice": with_edits(plain, new("twice.mp4"), (1000, 5), (800, 25)),
        "played twice": with_edits(plain, new("loop.mp4"), (1000, 0), (2000, 0)),
        "fragments": write(new("dash.mp4"), 40, muxer={"movflags": "frag_keyframe+empty_moov+dash+delay_moov"}),
        "a fragment a frame": write(new("frames.mp4"), 40, muxer={"movflags": "frag_every_frame+empty_moov"}),
        "no duration": write(new("live.webm"), 40, "libvpx", {"deadline": "realtime"}, muxer={"live": "1"}),
    }


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return odd(tmp_path_factory.mktemp("odd"))


COUNTS = {"edited": 15, "edited inside a frame": 16, "starts late": 20, "edited twice": 18, "played twice": 30,
          "hidden frames": 37, "open groups": 40, "intra refresh": 40, "fragments": 40, "no duration": 40}


def test_every_frame_alone_and_in_any_company_is_the_players(clips):
    for name, file in clips.items():
        times, frames = played(file)
        clip = clip_of(file)
        length, rate = clip.lengths()[0], clip.rates()[0]
        assert length == len(frames) == COUNTS.get(name, len(frames)), name
        assert rate == pytest.approx((length - 1) / (times[-1] - times[0])), name
        rng, at = np.random.default_rng(0), times - times[0]
        asked = [*np.arange(len(frames))[:, None], *rng.integers(0, len(frames), (8, 4)), np.arange(len(frames))]
        for which in asked:
            np.testing.assert_array_equal(video.read_at(str(file), at[which], within=0.01), frames[which], err_msg=name)
        if rate == pytest.approx(10):  # else it is evened out
            np.testing.assert_array_equal(clip[0].read_frames(np.arange(length))["image"], frames, err_msg=name)


def clip_of(file):
    """A source of this clip alone."""
    listed = file.with_suffix(file.suffix + ".jsonl")
    listed.write_text(json.dumps({"file": file.name}))
    return make_source("video_files", "clips", path=str(listed))


def test_few_packets_are_decoded_of_open_groups(clips):
    with video.reader(str(clips["open groups"])) as (_, table):
        assert np.flatnonzero(table.start).tolist()[:3] == [0, 9, 19] and np.flatnonzero(table.clean).tolist() == [0]
        assert np.flatnonzero(table.needed(np.array([32])))[0] == 19  # from the recovery point before the last one


@pytest.mark.parametrize("name, suffix", [("open groups", "mp4"), ("open groups", "mkv"), ("fragments", "mp4")])
def test_damage_is_still_named(clips, tmp_path, name, suffix):
    """A frame's data become noise; what came before it is still read."""
    def noise(i: int, data: bytes) -> bytes:
        return data[:12] + np.random.default_rng(i).bytes(len(data) - 12) if i == 30 else data

    file = remux(clips[name], tmp_path / f"damaged.{suffix}", change=noise)
    with video.reader(str(file)) as (_, table):
        frames = len(table.order)
    times = np.arange(frames) / 10
    with pytest.raises(BadEpisode, match=f"{file}: "):
        video.read_at(str(file), times, within=1)
    _, whole = played(clips["open groups"])
    if name.startswith("open"):
        np.testing.assert_array_equal(video.read_at(str(file), times[:8], within=1), whole[:8])


@pytest.mark.parametrize("matrix, expected", [
    ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]), ((1, 0, 0, -1), lambda f: f[:, ::-1]), ((-1, 0, 0, -1), lambda f: f[:, ::-1, ::-1]),
    ((0, 1, 1, 0), lambda f: f.swapaxes(1, 2)), ((0, -1, -1, 0), lambda f: f.swapaxes(1, 2)[:, ::-1, ::-1]),
    ((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2))), ((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2)))])
def test_mirrored_and_turned_clips_stand_as_a_viewer_shows_them(tmp_path, matrix, expected):
    file = with_matrix(write(tmp_path / "a.mp4", 5, size=(48, 64)), tmp_path / "b.mp4", *matrix)
    np.testing.assert_array_equal(clip_of(file)[0].read_frames(np.arange(5))["image"], expected(played(file)[1]))


def test_a_picture_that_changes_its_size_is_named(tmp_path):
    small, large = (write(tmp_path / f"{i}.webm", 10, "libvpx", {"deadline": "realtime", "lag-in-frames": "0"}, size=size)
                    for i, size in enumerate(((48, 64), (96, 128))))
    with av.open(str(small)) as a, av.open(str(large)) as b, av.open(str(tmp_path / "both.webm"), "w") as out:
        stream = out.add_stream_from_template(a.streams.video[0])
        for i, part in enumerate((a, b)):
            for packet in part.demux(video=0):
                if packet.dts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts + 1000 * i, packet.dts + 1000 * i, stream
                    out.mux(packet)
    clip = clip_of(tmp_path / "both.webm")[0]
    assert clip.read_frames(np.arange(10))["image"].shape == (10, 48, 64, 3)
    assert clip.read_frames(np.arange(10, 20))["image"].shape == (10, 96, 128, 3)
    with pytest.raises(BadEpisode, match="both.webm: the picture changes its size .* frame 10 is 96 x 128, frame 8 48 x 64"):
        clip.read_frames(np.arange(8, 12))


def test_a_cover_picture_is_no_clip(tmp_path):
    write(tmp_path / "x.mp4", 12)
    with av.open(str(tmp_path / "x.mp4")) as read, av.open(str(tmp_path / "y.mp4"), "w") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 24, "yuvj420p"
        moving = out.add_stream_from_template(read.streams.video[0])
        for packet in [*cover.encode(av.VideoFrame.from_ndarray(np.full((24, 32, 3), 9, np.uint8), format="rgb24")),
                       *cover.encode(None)]:
            out.mux(packet)
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = moving
                out.mux(packet)
    clip = clip_of(tmp_path / "y.mp4")[0]
    assert clip.length == 12 and number(clip.read_frames(np.array([7]))["image"][0]) == 7


def test_names_are_only_names(tmp_path, caplog):
    folder = tmp_path / "set [v2]::a"
    folder.mkdir()
    for name in ("GX01.MP4", "2024-05-01T10:20:00.mp4", "b.WebM", "c.mov"):
        made = tmp_path / f"clip{Path(name).suffix.lower()}"
        write(made, 3, "libvpx" if made.suffix == ".webm" else "libx264", {"g": "2"}).rename(folder / name)
    clips = make_source("video_files", "clips", path=str(folder))
    assert [file.rpartition("/")[2] for file in clips.files] == ["2024-05-01T10:20:00.mp4", "GX01.MP4", "b.WebM"]
    assert clips.lengths().tolist() == [3, 3, 3] and "1 videos that are no .mp4" in caplog.text and "c.mov" in caplog.text
    (folder / "list.jsonl").write_text('\ufeff{"file": "2024-05-01T10:20:00.mp4", "caption": "a\u2028b\u0085c"}\r\n', "utf-8")
    listed = make_source("video_files", "clips", path=str(folder / "list.jsonl"))
    assert listed[0].instruction == "a\u2028b\u0085c" and listed[0].length == 3


def test_gaps_and_rates_of_a_clip(tmp_path):
    """A screen recording that stands still for three seconds; a clip of 29.97 Hz."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5"})
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = 100 * i + (3000 if i > 9 else 0), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = clip_of(tmp_path / "a.mkv")[0]
    assert clip.length == 20 and clip.rate == pytest.approx(19 / 4.9)
    shown = [number(f) for f in clip.read_frames(np.arange(20))["image"]]
    assert shown[0] == 0 and shown[-1] == 19 and shown == sorted(shown)
    ntsc = clip_of(write(tmp_path / "b.mp4", 30, rate=Fraction(30000, 1001)))
    assert ntsc.rates()[0] == 30000 / 1001
