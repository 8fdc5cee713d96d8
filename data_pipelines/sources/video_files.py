"""Action-free clips: a folder of video files, decoded with PyAV, each frame by its own time stamp."""

import functools
import json
from pathlib import Path

import av
import numpy as np

from data_pipelines.episode import BadEpisode, Episode

_SUFFIXES = (".mp4", ".webm", ".mkv")


class VideoFilesSource:
    """`Source` over the video files of a folder, in the order of their names, with an optional captions.jsonl.

    A line of captions.jsonl is {"file": name, "caption": text}; a clip without one has the empty caption.
    """

    def __init__(self, name: str, path: str, *, view: str = "image", captions: str = "captions.jsonl"):
        """Raises FileNotFoundError where the folder is missing or holds no video."""
        self.name, self.path, self.view = name, Path(path), view
        there = sorted(p for p in self.path.glob("*") if p.suffix in _SUFFIXES) if self.path.is_dir() else []
        listed = self.path / captions
        lines = listed.read_text().splitlines() if listed.is_file() else []
        self._captions = {entry["file"]: entry["caption"] for entry in map(json.loads, lines)}
        # A captioned clip that is not there counts as an episode, so that it is reported instead of forgotten.
        self.files = sorted({*there, *(self.path / file for file in self._captions)})
        if not self.files:
            raise FileNotFoundError(f"dataset {name!r}: no {', '.join(_SUFFIXES)} file in {path}")
        self._headers: tuple[np.ndarray, np.ndarray] | None = None

    def lengths(self) -> np.ndarray:
        """int64 [clips], frames as the containers tell; 1 for an unreadable file, which fails when it is drawn."""
        return self._read_headers()[0]

    def rates(self) -> np.ndarray:
        """float64 [clips], frames per second."""
        return self._read_headers()[1]

    def _read_headers(self) -> tuple[np.ndarray, np.ndarray]:
        if self._headers is None:
            found = []
            for file in self.files:
                try:
                    found.append(_header(file))
                except BadEpisode:
                    found.append((1, 1.0))
            lengths, rates = zip(*found)
            self._headers = np.array(lengths, np.int64), np.array(rates)
        return self._headers

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Episode:
        file = self.files[index]
        length, rate = _header(file)
        return Episode(dataset=self.name, index=index, length=length, rate=rate,
                       instruction=self._captions.get(file.name, ""), state=None, action=None,
                       read_frames=functools.partial(_read_frames, file, self.view, length))


def _header(file: Path) -> tuple[int, float]:
    """(frames, frames per second) from the container. Raises BadEpisode where it tells no such thing."""
    with _opened(file) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        frames = stream.frames or round(_seconds(container, stream) * rate)
    if not frames or not rate:
        raise BadEpisode(f"{file}: the container tells {frames} frames at {rate} frames per second")
    return frames, rate


def _seconds(container, stream) -> float:
    """Duration; Matroska files tell that of the container alone."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


class _opened:
    """A container with a video stream; every failure of the reader names the file."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self):
        if not self.file.is_file() or not self.file.stat().st_size:
            raise BadEpisode(f"{self.file}: {'the file is empty' if self.file.is_file() else 'no such file'}")
        try:
            self.container = av.open(str(self.file))
        except (av.FFmpegError, OSError) as error:
            raise BadEpisode(f"{self.file}: cannot be opened: {error}") from error
        if not self.container.streams.video:
            self.container.close()
            raise BadEpisode(f"{self.file}: no video stream")
        return self.container

    def __exit__(self, kind, error, _):
        self.container.close()
        if kind is not None and issubclass(kind, av.FFmpegError):
            raise BadEpisode(f"{self.file}: cannot be decoded: {error}") from error


def _read_frames(file: Path, view: str, length: int, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The asked frames alone, uint8 [n, H, W, 3]: from the key frame before the first, up to the last."""
    wanted = np.unique(np.asarray(indices))
    found: dict[int, np.ndarray] = {}
    convert = av.video.reformatter.VideoReformatter()  # one for all: setting it up costs more than a small frame
    with _opened(file) as container:
        stream = container.streams.video[0]
        first = stream.start_time or 0
        number = lambda pts: round(float((pts - first) * stream.time_base) * float(stream.average_rate))
        container.seek(first + int(wanted[0] / float(stream.average_rate) / float(stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            index = number(frame.pts)
            if index in wanted:
                found[index] = convert.reformat(frame, format="rgb24").to_ndarray()
            if index >= wanted[-1]:
                break
    if missing := sorted(set(wanted.tolist()) - found.keys()):
        raise BadEpisode(f"{file}: frame {missing[0]} of {length} cannot be decoded; the file is cut short or its "
                         f"frames are not evenly spaced")
    return {view: np.stack([found[i] for i in np.asarray(indices).tolist()])}
