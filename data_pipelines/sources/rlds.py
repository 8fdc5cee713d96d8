"""Episodes in RLDS layout from a TFDS dataset in array_record or tfrecord files, read without TensorFlow.

Which field is what is said by arguments or a schema (sources/rlds_schemas.py), so another dataset is other arguments,
not another reader. Pictures stay encoded until a window asks for them.
"""

import contextlib
import functools
import json
import logging
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np

from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.sources.filters import EVERYTHING, NO_INSTRUCTION, Filters, holds
from data_pipelines.sources.records import Records
from data_pipelines.sources.rlds_schemas import get_schema
from data_pipelines.storage import files
from data_pipelines.storage.lru import begin_again
from data_pipelines.video import pictures


class RldsSource:
    """`Source` over one split of a TFDS dataset directory (the one that holds dataset_info.json)."""

    def __init__(self, name: str, path: str, *, schema: str = "", rate: float | None = None,
                 images: dict[str, str] | None = None, state: str | Sequence[str] | None = None,
                 action: str | Sequence[str] | None = None, instruction: str | None = None, split: str = "train",
                 filters: Filters = EVERYTHING):
        """Args:
          path: a folder, or its address for fsspec (gs://, s3://, ...).
          schema: name in rlds_schemas.SCHEMAS, which stands for what is not given here.
          rate: control steps per second.
          images: view name -> field of a step, as "observation/image"; state, action: one field or several, joined in
            order, "" for none; instruction: field likewise.
          filters: `where` names fields of the episode, as "episode_metadata/file_path".

        Raises FileNotFoundError where the directory holds no dataset, ValueError for what no schema answers.
        """
        begin_again()
        known = get_schema(schema)
        given = lambda value, otherwise: otherwise if value is None else value
        fields = lambda value: (value,) if isinstance(value, str) and value else tuple(value)
        self.name, self.path, self.split, self.filters = name, path.rstrip("/"), split, filters
        self.images = dict(given(images, known.images))
        self.state, self.action = fields(given(state, known.state)), fields(given(action, known.action))
        self.instruction, self._name = given(instruction, known.instruction), known.name
        if not given(rate, known.rate):
            raise ValueError(f"dataset {name!r}: rate is missing: how many steps per second has it?")
        if filters.successful and not known.success:
            raise ValueError(f"dataset {name!r}: schema {schema!r} does not say which episodes succeeded; choose them "
                             "by where={FIELD: VALUE}")
        self.rate = float(given(rate, known.rate))
        self._where = {**filters.where, **(known.success if filters.successful else {})}
        if not files.exists(f"{self.path}/dataset_info.json"):
            system, root = fsspec.core.url_to_fs(self.path)
            below = [str(Path(found).parent) for found in sorted(system.glob(f"{root}/**/dataset_info.json"))[:4]]
            raise FileNotFoundError(f"dataset {name!r}: no TFDS dataset in {path} (dataset_info.json is missing)"
                                    + (f"; there is one in {', '.join(below)}" if below else ""))
        self._scanned: dict[str, list] | None = None

    def __getstate__(self) -> dict:
        """Open files stay behind; lengths travel to worker processes."""
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}

    @functools.cached_property
    def _opened(self):
        """(records as bytes, parser of a record, split info). Raises BadEpisode without the split or a field.

        TFDS could decode steps too, but one by one: parsing whole columns is 20 times faster.
        """
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.example_parser import ExampleParserNp

        with _local_metadata(self.path) as folder:
            builder = tfds.builder_from_directory(folder)
            if self.split not in builder.info.splits:
                raise BadEpisode(f"{self.path}: no split {self.split!r}; there are {sorted(builder.info.splits)}")
            layout, info = builder.info.features.get_serialized_info(), builder.info.splits[self.split]
            kind, names = builder.info.file_format.value, sorted(info.filenames)
        known = sorted(_names(layout["steps"])) if "steps" in layout else []
        for field in (*self.images.values(), *self.state, *self.action, self.instruction):
            if field and field not in known:
                raise BadEpisode(f"{self.path}: no field {field!r}; steps have {known}")
        facts = sorted(_names({key: value for key, value in layout.items() if key != "steps"}))
        if missing := sorted({*self._where, *self._name_fields} - {*facts}):
            raise ValueError(f"{self.path}: no field {missing[0]!r}; an episode has {facts}")
        records = Records([f"{self.path}/{name}" for name in names], info.shard_lengths, kind)
        return records, ExampleParserNp(layout), info

    @property
    def _name_fields(self) -> list[str]:
        """Fields that an episode's name in a keep file is made of."""
        return [field for _, field, *_ in string.Formatter().parse(self._name) if field] if self.filters.keep else []

    def _example(self, index: int) -> dict:
        """The fields of an episode, those of steps under "steps", there each with its steps on the leading axis;
        pictures encoded."""
        from google.protobuf.message import DecodeError

        records, parser, _ = self._opened
        try:
            example = parser.parse_example(records[index])
            self._check(example["steps"])
        except BadEpisode as error:
            raise BadEpisode(f"{self._place(index)}: {error}") from error
        except (DecodeError, RuntimeError, ValueError, KeyError, TypeError, IndexError, OSError) as error:
            raise BadEpisode(f"{self._place(index)}: the record cannot be read: {error}") from error
        return example

    def _check(self, steps: dict) -> None:
        """Raises ValueError where a field is missing from the record, or has fewer steps than another."""
        length = len(_first_column(steps))
        for field in (*self.images.values(), *self.state, *self.action, self.instruction):
            if field and np.shape(_field(steps, field))[:1] != (length,):
                raise ValueError(f"{field!r} has shape {np.shape(_field(steps, field))} in {length} steps")

    def _place(self, index: int) -> str:
        return f"{self.path} split {self.split} episode {index}"

    def lengths(self) -> np.ndarray:
        """int64 [episodes]. Reads every record once and leaves the answer in PATH/lengths-SPLIT.json."""
        # An unreadable record counts as one step, so that it is drawn and reported instead of forgotten.
        return np.maximum(np.array(self._scan()["length"], np.int64), 1)

    def kept(self) -> np.ndarray:
        """See `Source`. Reads as `lengths`."""
        scanned = self._scan()
        lengths = np.array(scanned["length"], np.int64)
        chosen = np.ones(len(lengths), np.bool_)
        for field, wanted in self._where.items():
            chosen &= [holds(found, wanted) for found in scanned[field]]
        if self.filters.described:
            chosen &= [text not in NO_INSTRUCTION for text in scanned["instruction"]]
        names = (self._name.format_map({field: scanned[field][i] for field in self._name_fields}) or str(i)
                 for i in range(len(lengths)))
        return self.filters.stretches(np.maximum(lengths, 1), chosen | (lengths == 0), names)

    def _scan(self) -> dict[str, list]:
        """{"length": [...], and of what filters ask: field: [...]}, of all episodes; length 0: unreadable."""
        if self._scanned is None:
            fields = sorted({*self._where, *self._name_fields}) + ["instruction"] * self.filters.described
            file, info = f"{self.path}/lengths-{self.split}.json", self._opened[2]
            key = {"shard_lengths": list(info.shard_lengths), "num_bytes": info.num_bytes,
                   "instruction": self.instruction}
            kept = files.read_json(file) if files.exists(file) else {}
            known = kept.get("episodes", {}) if {name: kept.get(name) for name in key} == key else {}
            if not {"length", *fields} <= known.keys():
                fields = sorted({*fields, *known} - {"length"})
                rows = [self._facts(i, fields) for i in range(len(self))]
                known = {name: [row[name] for row in rows] for name in ("length", *fields)}
                if all(known["length"]):
                    _keep(file, json.dumps({**key, "episodes": known}))
            self._scanned = known
        return self._scanned

    def _facts(self, index: int, fields: Sequence[str]) -> dict:
        try:
            example = self._example(index)
        except BadEpisode:
            return {"length": 0} | dict.fromkeys(fields)
        found = {field: _plain(_field(example, field)) for field in fields if field != "instruction"}
        if "instruction" in fields:
            texts = _field(example["steps"], self.instruction) if self.instruction else [""]
            found["instruction"] = _plain(texts[0]) if len(texts) else ""
        return {"length": len(_first_column(example["steps"])), **found}

    def rates(self) -> np.ndarray:
        """float64 [episodes]."""
        return np.full(len(self), self.rate)

    def __len__(self) -> int:
        return len(self._opened[0])

    def __getitem__(self, index: int) -> Episode:
        steps, where = self._example(index)["steps"], self._place(index)
        encoded = {view: _field(steps, field) for view, field in self.images.items()}
        length = len(_first_column(steps))
        text = _field(steps, self.instruction)[0] if self.instruction and length else ""
        return Episode(
            dataset=self.name, index=index, length=length, rate=self.rate, instruction=_text(text, where),
            state=_numbers(steps, self.state, where), action=_numbers(steps, self.action, where),
            read_frames=functools.partial(pictures.read, encoded, self.images, where))


def _local_metadata(path: str):
    """A context with a folder of the files that say what the dataset holds; of an address a copy."""
    if not files.is_remote(path):
        return contextlib.nullcontext(path)
    folder = tempfile.TemporaryDirectory()
    for file in files.listed(path):
        name = file.rsplit("/", 1)[1]
        if "-of-" not in name:  # no shard
            (Path(folder.name) / name).write_bytes(files.read_bytes(file))
    return folder


def _keep(file: str, text: str) -> None:
    """A folder that cannot be written to costs a scan per run."""
    try:
        files.write_text(file, text)
    except OSError as error:
        logging.warning("%s cannot be kept (%s): every run reads all records to find episode lengths", file, error)


def _plain(value):
    """A scalar of the metadata as JSON has it; texts that are not UTF-8 as Python shows them."""
    value = value.item() if isinstance(value, (np.ndarray, np.generic)) else value
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _text(value, where: str) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise BadEpisode(f"{where}: the instruction is not UTF-8: {error}") from error


def _field(steps: dict, field: str):
    """The value at "a/b" of nested fields."""
    return functools.reduce(lambda value, key: value[key], field.split("/"), steps)


def _names(steps: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in steps.items():
        found += _names(value, f"{prefix}{key}/") if isinstance(value, dict) else [prefix + key]
    return found


def _first_column(steps: dict):
    return _field(steps, _names(steps)[0])


def _numbers(steps: dict, fields: Sequence[str], where: str) -> np.ndarray | None:
    """float32 [length, dims] of numeric fields, joined. Raises BadEpisode where a number is not finite."""
    parts = []
    for field in fields:
        rows = np.asarray(_field(steps, field), np.float32)
        rows = rows.reshape(len(rows), -1)
        for step, dim in np.argwhere(~np.isfinite(rows)):
            raise BadEpisode(f"{where} step {step}: {field}[{dim}] is {rows[step, dim]}")
        parts.append(rows)
    return np.concatenate(parts, 1) if parts else None
