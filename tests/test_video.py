"""Frames by time: every codec and container against a sequential decode; damage is named, never guessed over."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from data_pipelines.episode import BadEpisode
from data_pipelines.video import decoder
from data_pipelines.video import reading as video

KINDS = {  # name -> (file, encoder, its options)
    "h264 with B frames": ("a.mp4", "libx264", {"g": "12", "bf": "3"}),
    "h264, every other a key frame": ("b.mp4", "libx264", {"g": "2"}),
    "hevc, open groups": ("c.mkv", "libx265", {"x265-params": "keyint=8:open-gop=1:bframes=3:log-level=none"}),
    "hevc in mp4": ("d.mp4", "libx265", {"x265-params": "keyint=8:open-gop=1:bframes=3:log-level=none"}),
    "vp9": ("e.webm", "libvpx-vp9", {"g": "9", "deadline": "realtime", "cpu-used": "8"}),
    "av1": ("f.mp4", "libsvtav1", {"g": "7", "preset": "12"}),
}


def write(file, encoder, options, times, rotation=0) -> None:
    """A frame per time, in milliseconds: noise with a moving bar."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 200, (16, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(1000, int(times[1] - times[0])), options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            image = noise.copy()
            image[:, i % 60:i % 60 + 4] = 255
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def plain_decode(file) -> tuple[np.ndarray, np.ndarray]:
    """(all frames, their times since the first)."""
    with av.open(str(file)) as container:
        frames = list(container.decode(video=0))
    times = np.array([f.time for f in frames])
    return np.stack([f.to_ndarray(format="rgb24") for f in frames]), times - times[0]


@pytest.mark.parametrize("name, encoder, options", KINDS.values(), ids=KINDS)
def test_frames_equal_a_sequential_decode(tmp_path, name, encoder, options):
    write(tmp_path / name, encoder, options, 100 * np.arange(50))
    frames, times = plain_decode(tmp_path / name)
    assert len(frames) == 50
    rng = np.random.default_rng(0)
    for asked in (np.arange(50), np.array([49]), np.arange(0, 50, 6), *rng.integers(0, 50, (8, 5))):
        found = video.read_at(str(tmp_path / name), times[asked], within=0.01)
        np.testing.assert_array_equal(found, frames[asked])


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_a_variable_rate_gives_the_nearest_frame(tmp_path, name):
    times = np.cumsum(np.random.default_rng(1).choice([40, 80, 200], 40))
    write(tmp_path / name, "libx264", {"g": "10", "bf": "2"}, times)
    frames, known = plain_decode(tmp_path / name)
    np.testing.assert_allclose(known, (times - times[0]) / 1000, atol=2e-3)
    asked = np.linspace(0, known[-1], 77)
    nearest = np.abs(known[:, None] - asked).argmin(0)
    np.testing.assert_array_equal(video.read_at(str(tmp_path / name), asked, within=0.11), frames[nearest])
    with pytest.raises(BadEpisode, match="no frame at .* the nearest of its 40 frames is at"):
        video.read_at(str(tmp_path / name), asked, within=0.02)


def test_few_packets_are_decoded_for_a_few_frames(tmp_path):
    write(tmp_path / "a.mp4", "libx264", {"g": "10", "bf": "0", "sc_threshold": "0"}, 100 * np.arange(50))
    with video.reader(str(tmp_path / "a.mp4")) as (_, table):
        found = np.flatnonzero(table.needed(np.array([12, 31, 33])))
    assert found.tolist() == [10, 11, 12, 30, 31, 32, 33]


def test_readers_are_kept_and_bounded(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(video, "_idle", video.Lru(2, drop=lambda reader: reader.close()))
    make = video.VideoReader.__init__
    monkeypatch.setattr(video.VideoReader, "__init__", lambda self, file: opened.append(file) or make(self, file))
    files = [str(tmp_path / f"{i}.mp4") for i in range(3)]
    for file in files:
        write(file, "libx264", {}, 100 * np.arange(5))
    for file in (files[0], files[0], files[1], files[0], files[2], files[1]):
        video.read_at(file, np.zeros(1), within=1)
    assert opened == [files[0], files[1], files[2], files[1]]


@pytest.mark.parametrize("name", ["a.mp4", "c.mkv", "f.mp4"])
def test_damaged_files_never_crash_and_never_hang(tmp_path, name):
    """Torn or flipped at random: either all asked frames come, or the file is named."""
    _, encoder, options = next(kind for kind in KINDS.values() if kind[0] == name)
    write(tmp_path / name, encoder, options, 100 * np.arange(20))
    whole, rng, named = (tmp_path / name).read_bytes(), np.random.default_rng(0), 0
    for trial in range(60):
        data = bytearray(whole)
        if trial % 2:
            data = data[:int(rng.integers(len(data)))]
        else:
            for at in rng.integers(0, len(data), 8):
                data[at] ^= 1 << int(rng.integers(8))
        file = tmp_path / f"{trial}-{name}"
        file.write_bytes(data)
        try:
            assert video.read_at(str(file), 0.1 * np.arange(20), within=0.05).shape[0] == 20
        except BadEpisode as error:
            named += 1
            assert str(file) in str(error)
    assert named >= 30  # every torn one, and many of the others


def test_pyav_as_old_as_lerobots_lists_no_packets(tmp_path):
    """PyAV 15 has no index_entries: LeRobot 0.6.1 takes no newer, and what it wrote is read beside it."""
    name, encoder, options = next(iter(KINDS.values()))
    write(tmp_path / name, encoder, options, 100 * np.arange(5))
    with video.reader(str(tmp_path / name)) as (opened, _):
        assert decoder._packet_count(opened.stream) == 5
    assert decoder._packet_count(SimpleNamespace()) == 0
