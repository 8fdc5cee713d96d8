"""The folder `meta` of a LeRobot dataset, formats v2.0, v2.1 and v3.0: which episode lies where. No step is read.

v2 has a table and a video per episode, their names by patterns in info.json. v3 puts many episodes into one file and
says in meta/episodes where each begins. GEAR's modality.json names slices of columns; its names are understood first.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.episode import BadEpisode
from data_pipelines.sources.alignment import ROUNDED_RATE, Count, VideoSpan, count_frames
from data_pipelines.sources.filters import matches
from data_pipelines.sources.lerobot_folder import MetaFolder
from data_pipelines.storage import files
from data_pipelines.storage.tables import read_parquet
from world_model import kinds

_FILE = ("chunk_index", "file_index")
_SPAN = ("from_timestamp", "to_timestamp")
_EPISODE = kinds.fields({"episode_index": kinds.number(0, 2**31), "length": kinds.optional(kinds.number(0, 2**31)),
                          "tasks": kinds.optional(kinds.list_of(kinds.text))}, required=("episode_index", "length"))


@dataclasses.dataclass(frozen=True)
class Field:
    """Numbers start:end of a table's vector column; all that follow where end is None."""

    column: str
    start: int = 0
    end: int | None = None


class Meta(MetaFolder):
    """The content of meta/: which episodes there are, and where."""

    def __init__(self, path: str, where: dict[str, Any]):
        """where: what the metadata of `chosen` episodes hold, as {"success": True}.

        Raises FileNotFoundError where there is no dataset and ValueError naming the file that makes no sense.
        """
        super().__init__(path)
        self._where = f"{self.path}/meta/episodes.jsonl"  # what says where episodes are
        self._recorded = self._read_episodes(where)  # with the discarded ones
        self._episodes = self._present(self._recorded)
        self.numbers = self._integers(self._episodes, "episode_index")  # int64 [episodes]
        self.lengths = self._integers(self._episodes, "length", missing=1)  # steps, int64 [episodes]
        if len(np.unique(self.numbers)) < len(self.numbers):
            raise ValueError(f"{path}/meta: an episode_index is there twice")
        self.chosen = self._matches(where)  # bool [episodes]
        self.tasks = self.read_tasks()
        self._counts: dict[str, dict] = {}

    def table_of(self, index: int) -> tuple[str, int | None]:
        """The (file, rows) where an episode's steps lie; None where it shares the file with others."""
        if not self.shared_files:
            return self.file("data_path", self._numbered(index)), int(self.lengths[index])
        row = self._row(index, ("data/chunk_index", "data/file_index"))
        return self.file("data_path", {name: int(row[f"data/{name}"]) for name in _FILE}), None

    def video_of(self, index: int, key: str) -> VideoSpan:
        """The place of camera feature `key`'s frames. Raises BadEpisode where they are not as many as the steps."""
        length = int(self.lengths[index])
        if not self.shared_files:
            return VideoSpan(self.file("video_path", {**self._numbered(index), "video_key": key}))
        row = self._row(index, [f"videos/{key}/{name}" for name in (*_FILE, *_SPAN)])
        file = self.file("video_path", {name: int(row[f"videos/{key}/{name}"]) for name in _FILE} | {"video_key": key})
        begin, end = (row[f"videos/{key}/{side}"] for side in _SPAN)
        # rates are told in whole numbers where they are a thousandth less
        if not abs(end - begin - length / self.rate) <= 0.5 / self.rate + ROUNDED_RATE * length / self.rate:
            raise BadEpisode(f"{self.path} episode {self.numbers[index]}: {file} spans {end - begin:.3f} s, "
                             f"{length} steps at {self.rate:g} per second take {length / self.rate:.3f} s")
        return VideoSpan(file, begin, end, self._counted(key)[int(self.numbers[index])])

    def _row(self, index: int, columns: Iterable[str]) -> dict[str, float]:
        """What the metadata say of an episode. Raises BadEpisode where they do not."""
        row = self._episodes.select(["length", *columns]).slice(index, 1).to_pylist()[0]
        for name, value in row.items():
            if not isinstance(value, (int, float)) or not np.isfinite(value) or value < -1e-3:
                raise BadEpisode(f"{self.path} episode {self.numbers[index]}: {self._where} does not say its {name}: "
                                 f"{value!r}")
        return row

    def _counted(self, key: str) -> dict[int, Count]:
        """What `count_frames` returns for a camera."""
        if key not in self._counts:
            place = [f"videos/{key}/{name}" for name in _FILE]
            self._counts[key] = count_frames(self._recorded, place, f"videos/{key}/{_SPAN[0]}")
        return self._counts[key]

    def _integers(self, episodes: pa.Table, name: str, missing: int | None = None) -> np.ndarray:
        """A column of whole numbers, int64 [episodes]. Raises ValueError where one is missing, unless that is told as
        `missing`, or makes no sense."""
        try:
            values = pc.cast(episodes[name], pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException as error:
            raise ValueError(f"{self._where}: its {name} are no numbers: {error}") from error
        bad = ~((values >= 0) & (values < 2**31) & (values == np.round(values)))
        if missing is None and bad.any():
            raise ValueError(f"{self._where}: {name} of row {int(bad.argmax())} is {values[bad.argmax()]}")
        return np.where(bad, missing or 0, np.nan_to_num(values)).astype(np.int64)

    def field(self, part: str, name: str) -> Field:
        """The field that `name` stands for in part "state", "action", "annotation" or "video": a name of modality.json,
        or a column. Raises ValueError naming what there is."""
        entry = self.modality.get(part, {}).get(name)
        prefix = {"state": "observation.state", "action": "action", "video": f"observation.images.{name}",
                  "annotation": f"annotation.{name}"}[part]
        found = Field(name) if entry is None else Field(
            entry.get("original_key") or prefix, entry.get("start", 0), entry.get("end"))
        features = self.value("features")
        if found.column not in features:
            raise ValueError(f"{self.path}: no {part} {name!r}; modality.json names "
                             f"{sorted(self.modality.get(part, {}))}, info.json has the features {sorted(features)}")
        if part == "video" and not self.holds_pictures(found.column):
            if features[found.column].get("dtype") != "video":
                raise ValueError(f"{self.path}: feature {found.column!r} is {features[found.column].get('dtype')!r}; "
                                 "cameras are 'video' or 'image'")
            if self.shared_files:
                self._check_columns([f"videos/{found.column}/{name}" for name in (*_FILE, *_SPAN)])
        return found

    def holds_pictures(self, column: str) -> bool:
        """Whether a camera's pictures lie in the tables of steps."""
        return self.value("features")[column].get("dtype") == "image"

    def _numbered(self, index: int) -> dict[str, int]:
        episode = int(self.numbers[index])
        return {"episode_index": episode, "episode_chunk": episode // int(self.value("chunks_size"))}

    def _check_columns(self, names: Iterable[str]) -> None:
        if missing := [name for name in names if name not in self._episodes.column_names]:
            raise ValueError(f"{self._where} has no column {missing[0]!r}")

    def _read_episodes(self, where: dict[str, Any]) -> pa.Table:
        if self.shared_files:
            there = files.find_files(f"{self.path}/meta/episodes", ".parquet")
            if not there:
                raise ValueError(f"{self.path}/meta/episodes: no parquet file: the recording was never finished")
            table = pa.concat_tables([read_parquet(file, _without_stats) for file in there],
                                     promote_options="permissive")
            needed = {"episode_index", "length", "data/chunk_index", "data/file_index"}
            self._where = there[0] if len(there) == 1 else f"{self.path}/meta/episodes"
            if missing := sorted(needed - {*table.column_names}):
                raise ValueError(f"{self._where} has no column {missing[0]!r}")
        else:
            rows = self.json_lines("episodes.jsonl", _EPISODE)
            known = ["episode_index", "length", *(key for key in ("tasks", *where) if any(key in e for e in rows))]
            table = self._as_table({key: [e.get(key) for e in rows] for key in known})
        if not len(table):
            raise ValueError(f"{self._where}: no episode is there")
        return table

    def _as_table(self, columns: dict[str, list]) -> pa.Table:
        try:
            return pa.table(columns)
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"{self._where}: its values are not of one kind: {error}") from error

    def _present(self, episodes: pa.Table) -> pa.Table:
        numbers = self._integers(episodes, "episode_index")
        kept = ~np.isin(numbers, self.info.get("discarded_episode_indices", []))
        return episodes.take(np.flatnonzero(kept)[np.argsort(numbers[kept], kind="stable")])

    def _matches(self, where: dict[str, Any]) -> np.ndarray:
        chosen = np.ones(len(self._episodes), np.bool_)
        for key, value in where.items():
            if key not in self._episodes.column_names:
                raise ValueError(f"{self.path}/meta: no episode says {key!r}")
            chosen &= [matches(found, value) for found in self._episodes[key].to_pylist()]
        return chosen

    @property
    def texts(self) -> list[list[str]] | None:
        """The tasks of each episode; None where the metadata do not say."""
        return self._episodes["tasks"].to_pylist() if "tasks" in self._episodes.column_names else None

def _without_stats(columns: list[str]) -> list[str]:
    return [name for name in columns if not name.startswith("stats/")]
