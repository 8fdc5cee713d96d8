"""The folder `meta` of a LeRobot dataset as files: info.json with its patterns of names, modality.json, tasks."""

import re
import string
from collections.abc import Callable
from pathlib import PurePosixPath

from data_pipelines import imagined
from data_pipelines.storage import files
from data_pipelines.storage.tables import read_parquet
from world_model import kinds

_FORM = re.compile(r"0?\d{0,2}d?")  # how a pattern may write a number
_INFO = kinds.fields({"fps": kinds.number(1e-3, 1e6), "chunks_size": kinds.whole(1), "data_path": kinds.text,
                       "video_path": kinds.optional(kinds.text),
                       "features": kinds.map_of(kinds.fields({"dtype": kinds.text})),
                       "imagined": kinds.true_or_false, "discarded_episode_indices": kinds.list_of(kinds.whole())})
_SLICE = kinds.optional(kinds.fields({"start": kinds.whole(), "end": kinds.optional(kinds.whole()),
                                        "original_key": kinds.optional(kinds.text)}))
_MODALITY = kinds.fields(dict.fromkeys(("state", "action", "annotation", "video"), kinds.map_of(_SLICE)))
_TASK = kinds.fields({"task_index": kinds.whole(), "task": kinds.optional(kinds.text)},
                      required=("task_index", "task"))
_VERSION = re.compile(r"v?(2\.[01]|3\.0)$")


class MetaFolder:
    """What a dataset says of itself as a whole. `path` is a folder or an address for fsspec (gs://, s3://, ...)."""

    def __init__(self, path: str):
        """Raises FileNotFoundError where there is no dataset and ValueError naming the file that makes no sense."""
        self.path = path.rstrip("/")
        self.info = self.json("info.json", _INFO)
        if not _VERSION.match(str(self.info.get("codebase_version"))):
            raise ValueError(f"{path}/meta/info.json: codebase_version = {self.info.get('codebase_version')!r}; "
                             "formats v2.0, v2.1 and v3.0 are read")
        if self.info.get("imagined"):  # which people should be able to tell from what happened
            if not self.exists(imagined.FILE):
                raise ValueError(f"{path}: its video was imagined by a model, and meta/{imagined.FILE}, which says by "
                                 "which, from which seeds and under which threshold, is missing: make the dataset "
                                 "again with launch.dream")
            self.json(imagined.FILE, imagined.PROVENANCE)
        self.shared_files = "3.0" in self.info["codebase_version"]  # several episodes lie in one file
        self.rate = float(self.value("fps"))
        self.modality = self.json("modality.json", _MODALITY) if self.exists("modality.json") else {}
        # {column: {"mean": [...], ...}}
        self.stats = self.json("stats.json", kinds.fields({})) if self.exists("stats.json") else {}

    def file(self, pattern: str, values: dict) -> str:
        """The file that a pattern of info.json names. Raises ValueError where it lies outside the dataset."""
        text = self.value(pattern)
        where = f"{self.path}/meta/info.json: {pattern}"
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{where} = {text!r} is no pattern: {error}") from error
        for _, name, form, conversion in parts:
            if name is not None and (name not in values or conversion or not _FORM.fullmatch(form or "")):
                raise ValueError(f"{where} = {text!r} asks for {name!r} as {form!r}; "
                                 f"there are {sorted(values)}, with at most 99 digits")
        relative = PurePosixPath(text.format(**values).replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or ":" in str(relative):
            raise ValueError(f"{where} leads out of the dataset: {relative}")
        return f"{self.path}/{relative}"

    def value(self, key: str):
        """A value of info.json. Raises ValueError where it is missing."""
        if self.info.get(key) is None:
            raise ValueError(f"{self.path}/meta/info.json has no {key!r}")
        return self.info[key]

    def read_tasks(self) -> dict[int, str]:
        """The text of each task by its number."""
        if self.shared_files:
            if not self.exists("tasks.parquet"):
                return {}
            file = f"{self.path}/meta/tasks.parquet"
            table = read_parquet(file)
            texts = [name for name in table.column_names if name != "task_index"]  # the index of a data frame
            if len(texts) == len(table.column_names) or not texts:
                raise ValueError(f"{file}: expected task_index and a text, found the columns {table.column_names}")
            rows = table.select(["task_index", texts[0]]).rename_columns(["task_index", "task"]).to_pylist()
            kinds.check(rows, kinds.list_of(_TASK), f"{file} row ")
        else:
            rows = self.json_lines("tasks.jsonl", _TASK) if self.exists("tasks.jsonl") else []
        return {row["task_index"]: row["task"] or "" for row in rows}

    def exists(self, name: str) -> bool:
        """Whether meta/ holds that file."""
        return files.exists(f"{self.path}/meta/{name}")

    def json(self, name: str, rule: kinds.Rule) -> dict:
        """The content of a JSON file of meta/. Raises FileNotFoundError, ValueError."""
        return self._read(files.read_json, name, rule)

    def json_lines(self, name: str, rule: kinds.Rule) -> list[dict]:
        """The lines of a file of meta/; raises as `json`."""
        return self._read(files.read_json_lines, name, rule)

    def _read(self, read: Callable, name: str, rule: kinds.Rule):
        file = f"{self.path}/meta/{name}"
        try:
            return read(file, rule)
        except FileNotFoundError:
            raise FileNotFoundError(f"no LeRobot dataset in {self.path}: {file} is missing") from None
