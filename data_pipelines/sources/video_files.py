"""Action-free clips: video files with captions, read by the time stamps of their frames."""

import concurrent.futures
import functools
import logging
from pathlib import PurePosixPath

import numpy as np

from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.sources.filters import EVERYTHING, Filters
from data_pipelines.sources.texts import any_said
from data_pipelines.storage import files
from data_pipelines.storage.lru import reset_identities
from data_pipelines.storage.tables import read_parquet
from data_pipelines.video import reading as video
from world_model import kinds

_SUFFIXES = (".mp4", ".webm", ".mkv")  # in small letters or capitals
_OTHER_VIDEOS = (".mov", ".m4v", ".avi", ".ts", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv")  # left out, and said
_LISTS = (".jsonl", ".parquet")
_ROW = kinds.fields({"file": kinds.text, "caption": kinds.optional(kinds.text)}, required=("file",))


class VideoFilesSource:
    """`Source` over the videos of a folder, in the order of their names, or over those that a list names.

    A list is a JSONL or parquet file with "file", relative to the list, and "caption". A folder may hold one as
    captions.jsonl; a clip that it does not name has the empty caption. Step i of a clip is the frame nearest to i / its
    average rate, so that a variable frame rate is evened out.
    """

    def __init__(self, name: str, path: str, *, view: str = "image", filters: Filters = EVERYTHING):
        """path: a folder or a list (*.jsonl, *.parquet), or its address for fsspec (gs://, s3://, ...).

        Raises FileNotFoundError where it is missing or holds no video, ValueError where a list makes no sense.
        """
        reset_identities()
        self.name, self.path, self.view, self.filters = name, path.rstrip("/"), view, filters
        if filters.where or filters.successful:
            raise ValueError(f"dataset {name!r}: clips carry no metadata that `where` or `successful` could look at")
        if self.path.endswith(_LISTS):
            self._folder = self.path.rpartition("/")[0] or "."
            there, listed = [], read_list(self.path)
        else:
            self._folder, captions = self.path, f"{self.path}/captions.jsonl"
            names = [file.rpartition("/")[2] for file in files.list_files(self.path)]
            there = [name for name in names if name.lower().endswith(_SUFFIXES)]
            if others := [name for name in names if name.lower().endswith(_OTHER_VIDEOS)]:
                logging.warning("dataset %r: %d videos that are no %s are left out, as %s: name them in a list",
                                name, len(others), ", ".join(_SUFFIXES), others[0])
            listed = read_list(captions) if files.exists(captions) else {}
        # A captioned clip that is not there counts as an episode, so that it is reported instead of forgotten.
        self._names, self._captions = sorted({*there, *listed}), listed
        if not self._names:
            raise FileNotFoundError(f"dataset {name!r}: no {', '.join(_SUFFIXES)} file in {path}")
        self._tables: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def files(self) -> list[str]:
        """The path or address of each clip."""
        return [f"{self._folder}/{name}" for name in self._names]

    def lengths(self) -> np.ndarray:
        """The frames of each clip that a player shows, int64 [clips]: all packets are listed, none is decoded. 1 for an
        unreadable file, which fails when it is drawn."""
        return self._read_tables()[0]

    def rates(self) -> np.ndarray:
        """The frames per second of each clip, float64 [clips]."""
        return self._read_tables()[1]

    def stretches(self) -> np.ndarray:
        """The stretches where windows may begin, as `Source` says; a keep file names clips as captions do."""
        chosen = np.ones(len(self), np.bool_)
        if self.filters.described:
            chosen &= [any_said([self._captions.get(name, "")]) for name in self._names]
        return self.filters.stretches(self.lengths(), chosen, self._names)

    def _read_tables(self) -> tuple[np.ndarray, np.ndarray]:
        if self._tables is None:
            with concurrent.futures.ThreadPoolExecutor(16) as threads:
                lengths, rates = zip(*threads.map(_length_or_one, self.files))
            self._tables = np.array(lengths, np.int64), np.array(rates)
        return self._tables

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Episode:
        name = self._names[index]
        file = f"{self._folder}/{name}"
        length, rate = _length(file)
        return Episode(dataset=self.name, index=index, length=length, rate=rate,
                       instruction=self._captions.get(name, ""), state=None, action=None,
                       read_frames=functools.partial(_read_frames, file, self.view, rate))


def read_list(file: str) -> dict[str, str]:
    """Reads a list as {file: caption}. Raises FileNotFoundError where there is none, ValueError where it makes no sense
    or leads out of its folder."""
    if file.endswith(".parquet"):
        rows = read_parquet(file, lambda names: [name for name in names if name in ("file", "caption")]).to_pylist()
    else:
        rows = files.read_json_lines(file, kinds.anything)
    found = {}
    for number, row in enumerate(rows, 1):
        kinds.check(row, _ROW, f"{file} row {number}")
        name, caption = row["file"], row.get("caption")
        place = PurePosixPath(name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or "://" in name:
            raise ValueError(f"{file} row {number}: {name!r} leads out of the folder")
        found[str(place)] = caption or ""
    return found


def _length(file: str) -> tuple[int, float]:
    """The (frames, frames per second) of a clip. Raises BadEpisode where it cannot be read or all is at one time."""
    with video.reader(file) as (opened, table):
        rate = table.rate(float(opened.stream.average_rate or 0))
        if not rate:
            raise BadEpisode(f"{file}: {len(table.order)} frames at one time: they have no rate")
        return len(table.order) + table.lost, rate


def _length_or_one(file: str) -> tuple[int, float]:
    try:
        return _length(file)
    except BadEpisode:
        return 1, 1.0


def _read_frames(file: str, view: str, rate: float, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Decodes the asked frames alone: view -> uint8 [n, H, W, 3]."""
    def choose(table: video.PacketTable) -> np.ndarray:
        if (last := int(np.max(indices))) >= len(table.order):
            raise BadEpisode(f"{file}: cannot be decoded: frame {last} of {len(table.order) + table.lost} is not "
                             f"there; the file is cut short")
        return table.nearest(np.asarray(indices) / rate)

    return {view: video.read(file, choose)}
