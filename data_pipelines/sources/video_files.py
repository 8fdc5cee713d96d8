"""Action-free clips: a folder of video files with captions, each frame by its own time stamp."""

import functools
import json
from pathlib import Path

import numpy as np

from data_pipelines import video
from data_pipelines.episode import BadEpisode, Episode

_SUFFIXES = (".mp4", ".webm", ".mkv")


class VideoFilesSource:
    """`Source` over the video files of a folder, in the order of their names, with an optional captions.jsonl.

    A line of captions.jsonl is {"file": name, "caption": text}; a clip without one has the empty caption. Step i of a
    clip is the frame nearest to i / its average rate: a variable frame rate is evened out.
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
                       read_frames=functools.partial(_read_frames, file, self.view, rate))


def _header(file: Path) -> tuple[int, float]:
    """(frames, frames per second) from the container. Raises BadEpisode where it tells no such thing."""
    opened = video.VideoReader(str(file))
    frames, rate = opened.header
    opened.close()
    if not frames or not rate:
        raise BadEpisode(f"{file}: the container tells {frames} frames at {rate} frames per second")
    return frames, rate


def _read_frames(file: Path, view: str, rate: float, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The asked frames alone, uint8 [n, H, W, 3]."""
    return {view: video.read_at(str(file), np.asarray(indices) / rate, within=1.0)}
