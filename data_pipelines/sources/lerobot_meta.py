"""The folder `meta` of a LeRobot dataset, formats v2.0, v2.1 and v3.0: which episode lies where. No step is read.

v2 has a table and a video per episode, their names by patterns in info.json. v3 puts many episodes into one file and
says in meta/episodes where each begins. GEAR's modality.json names slices of columns; its names are understood first.
"""

import dataclasses
import re
import string
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.episode import BadEpisode
from data_pipelines.sources.filters import matches
from data_pipelines.storage import files

_VERSION = re.compile(r"v?(2\.[01]|3\.0)$")


@dataclasses.dataclass(frozen=True)
class Field:
    """Numbers start:end of a table's vector column; all that follow where end is None."""

    column: str
    start: int = 0
    end: int | None = None


@dataclasses.dataclass(frozen=True)
class VideoSpan:
    """The place of an episode in a video file."""

    file: str
    begin: float  # seconds into the file
    frames: int | None  # frames that the whole file should hold; None where several episodes share it


class Meta:
    """The content of meta/. `path` is a folder or an address for fsspec (gs://, s3://, ...)."""

    def __init__(self, path: str, where: dict[str, Any]):
        """where: what the metadata of `chosen` episodes hold, as {"success": True}.

        Raises FileNotFoundError where there is no dataset and ValueError naming the file that makes no sense.
        """
        self.path = path.rstrip("/")
        self.info = self._json("info.json")
        if not _VERSION.match(str(self.info.get("codebase_version"))):
            raise ValueError(f"{path}/meta/info.json: codebase_version = {self.info.get('codebase_version')!r}; "
                             "formats v2.0, v2.1 and v3.0 are read")
        self.shared_files = "3.0" in self.info["codebase_version"]  # several episodes lie in one file
        self.rate = float(self._value("fps"))
        self.modality = self._json("modality.json") if self._exists("modality.json") else {}
        self.stats = self._json("stats.json") if self._exists("stats.json") else {}  # {column: {"mean": [...], ...}}
        self._episodes = self._present(self._read_episodes(where))
        self.numbers = self._episodes["episode_index"].to_numpy().astype(np.int64)  # [episodes]
        self.lengths = self._episodes["length"].to_numpy().astype(np.int64)  # steps, [episodes]
        if len(np.unique(self.numbers)) < len(self.numbers):
            raise ValueError(f"{path}/meta: an episode_index is there twice")
        self.chosen = self._hold(where)  # bool [episodes]
        self.tasks = self._read_tasks()

    def table_of(self, index: int) -> tuple[str, int]:
        """The (file, first row) where an episode's steps lie."""
        e = self._episodes.slice(index, 1).to_pylist()[0]
        if not self.shared_files:
            return self._file("data_path", self._numbers(e["episode_index"])), 0
        place = {"chunk_index": e["data/chunk_index"], "file_index": e["data/file_index"]}
        return self._file("data_path", place), e["dataset_from_index"] - e["first_row"]

    def video_of(self, index: int, key: str) -> VideoSpan:
        """The place of camera feature `key`'s frames. Raises BadEpisode where they are not as many as the steps."""
        e = self._episodes.slice(index, 1).to_pylist()[0]
        if not self.shared_files:
            return VideoSpan(self._file("video_path", {**self._numbers(e["episode_index"]), "video_key": key}), 0.0,
                             e["length"])
        where = {name: e[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        file = self._file("video_path", {**where, "video_key": key})
        begin, end = (e[f"videos/{key}/{side}_timestamp"] for side in ("from", "to"))
        if not abs(end - begin - e["length"] / self.rate) <= 0.5 / self.rate:
            raise BadEpisode(f"{self.path} episode {e['episode_index']}: {file} spans {end - begin:.3f} s, "
                             f"{e['length']} steps at {self.rate:g} per second take {e['length'] / self.rate:.3f} s")
        return VideoSpan(file, begin, None)

    def field(self, part: str, name: str) -> Field:
        """The field that `name` stands for in part "state", "action", "annotation" or "video": a name of modality.json,
        or a column. Raises ValueError naming what there is."""
        entry = self.modality.get(part, {}).get(name)
        prefix = {"state": "observation.state", "action": "action", "video": f"observation.images.{name}",
                  "annotation": f"annotation.{name}"}[part]
        found = Field(name) if entry is None else Field(
            entry.get("original_key") or prefix, entry.get("start", 0), entry.get("end"))
        features = self._value("features")
        if found.column not in features:
            raise ValueError(f"{self.path}: no {part} {name!r}; modality.json names "
                             f"{sorted(self.modality.get(part, {}))}, info.json has the features {sorted(features)}")
        if part == "video" and features[found.column].get("dtype") != "video":
            raise ValueError(f"{self.path}: feature {found.column!r} is {features[found.column].get('dtype')!r}; only "
                             "cameras stored as video files are read")
        return found

    def _numbers(self, episode: int) -> dict[str, int]:
        return {"episode_index": episode, "episode_chunk": episode // int(self._value("chunks_size"))}

    def _file(self, pattern: str, values: dict) -> str:
        """The file that a pattern of info.json names. Raises ValueError where it lies outside the dataset."""
        text = self._value(pattern)
        known = {name for _, name, *_ in string.Formatter().parse(text) if name is not None}
        if not known <= values.keys():
            raise ValueError(f"{self.path}/meta/info.json: {pattern} = {text!r} asks for "
                             f"{sorted(known - values.keys())}")
        relative = PurePosixPath(text.format(**values).replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or ":" in str(relative):
            raise ValueError(f"{self.path}/meta/info.json: {pattern} leads out of the dataset: {relative}")
        return f"{self.path}/{relative}"

    def _value(self, key: str):
        if key not in self.info:
            raise ValueError(f"{self.path}/meta/info.json has no {key!r}")
        return self.info[key]

    def _read_episodes(self, where: dict[str, Any]) -> pa.Table:
        if self.shared_files:
            tables = [read_parquet(file, _without_stats) for file in sorted(self._list("episodes/**/*.parquet"))]
            return _with_first_rows(pa.concat_tables(tables, promote_options="permissive"))
        rows = self._json_lines("episodes.jsonl")
        if not rows or any(not {"episode_index", "length"} <= e.keys() for e in rows):
            raise ValueError(f"{self.path}/meta/episodes.jsonl: every episode needs episode_index and length")
        known = ["episode_index", "length", *(key for key in ("tasks", *where) if any(key in e for e in rows))]
        return pa.table({key: [e.get(key) for e in rows] for key in known})

    def _present(self, episodes: pa.Table) -> pa.Table:
        discarded = np.isin(episodes["episode_index"].to_numpy(), self.info.get("discarded_episode_indices", []))
        return episodes.filter(pa.array(~discarded)).sort_by("episode_index")

    def _hold(self, where: dict[str, Any]) -> np.ndarray:
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

    def _read_tasks(self) -> dict[int, str]:
        if not self.shared_files:
            rows = self._json_lines("tasks.jsonl") if self._exists("tasks.jsonl") else []
            return {row["task_index"]: row["task"] for row in rows}
        if not self._exists("tasks.parquet"):
            return {}
        table = read_parquet(f"{self.path}/meta/tasks.parquet")
        text = next(n for n in table.column_names if n != "task_index")  # the index of a data frame, named or not
        return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist()))

    def _list(self, pattern: str) -> list[str]:
        return [opened.full_name if "://" in self.path else opened.path
                for opened in fsspec.open_files(f"{self.path}/meta/{pattern}", "rb")]

    def _exists(self, name: str) -> bool:
        return files.exists(f"{self.path}/meta/{name}")

    def _json(self, name: str) -> dict:
        return self._read(files.read_json, name)

    def _json_lines(self, name: str) -> list[dict]:
        return self._read(files.read_json_lines, name)

    def _read(self, read: Callable, name: str):
        file = f"{self.path}/meta/{name}"
        try:
            return read(file)
        except FileNotFoundError:
            raise FileNotFoundError(f"no LeRobot dataset in {self.path}: {file} is missing") from None


def read_parquet(file: str, choose: Callable[[list[str]], list[str]] | None = None) -> pa.Table:
    """Reads a whole small table; choose: all column names -> those to read. Raises ValueError where that fails."""
    try:
        with fsspec.open(file, "rb") as opened:
            opened = pq.ParquetFile(opened)
            table = opened.read(choose(opened.schema_arrow.names) if choose else None)
            table.validate(full=True)  # texts are UTF-8
            return table
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _without_stats(columns: list[str]) -> list[str]:
    return [name for name in columns if not name.startswith("stats/")]


def _with_first_rows(episodes: pa.Table) -> pa.Table:
    """Adds a column "first_row": the dataset_from_index at which the episode's file begins."""
    place = np.stack([episodes[f"data/{name}"].to_numpy() for name in ("chunk_index", "file_index")], 1)
    rows = episodes["dataset_from_index"].to_numpy()
    _, file = np.unique(place, axis=0, return_inverse=True)
    firsts = np.full(file.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(firsts, file, rows)
    return episodes.append_column("first_row", pa.array(firsts[file]))
