"""Episodes in RLDS layout from a TFDS dataset in array_record or tfrecord files, read without TensorFlow.

Arguments or a schema (sources/rlds_schemas.py) name the fields, so that another dataset takes other arguments and not
another reader. Pictures stay encoded until a window asks for them.
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
from data_pipelines.sources.filters import EVERYTHING, NO_INSTRUCTION, Filters, matches
from data_pipelines.sources.records import Records
from data_pipelines.sources.rlds_schemas import get_schema
from data_pipelines.storage import files
from data_pipelines.storage.lru import reset_identities
from data_pipelines.video import pictures


class RldsSource:
    """`Source` over one split of a TFDS dataset directory (the one that holds dataset_info.json)."""

    def __init__(self, name: str, path: str, *, schema: str = "", rate: float | None = None,
                 images: dict[str, str] | None = None, state: str | Sequence[str] | None = None,
                 action: str | Sequence[str] | None = None, instruction: str | None = None, split: str = "train",
                 filters: Filters = EVERYTHING):
        """Args:
          path: a folder, or its address for fsspec (gs://, s3://, ...).
          schema: name in rlds_schemas.SCHEMAS; it says what is not given here.
          rate: control steps per second.
          images: view name -> field of a step, as "observation/image"; state, action: one field or several, joined in
            order, "" for none; instruction: field likewise.
          filters: `where` names fields of the episode, as "episode_metadata/file_path".

        Raises FileNotFoundError where the directory holds no dataset, ValueError for what no schema answers.
        """
        reset_identities()
        known = get_schema(schema)
        self.name, self.path, self.split, self.filters = name, path.rstrip("/"), split, filters
        self.images = dict(known.images if images is None else images)
        self.state = _as_fields(known.state if state is None else state)
        self.action = _as_fields(known.action if action is None else action)
        self.instruction = known.instruction if instruction is None else instruction
        self._name = known.name
        rate = known.rate if rate is None else rate
        if not rate:
            raise ValueError(f"dataset {name!r}: rate is missing: how many steps per second has it?")
        if filters.successful and not known.success:
            raise ValueError(f"dataset {name!r}: schema {schema!r} does not say which episodes succeeded; choose them "
                             "by where={FIELD: VALUE}")
        self.rate = float(rate)
        self._where = {**filters.where, **(known.success if filters.successful else {})}
        self._scanned: dict[str, list] | None = None
        self._check_folder()

    def _check_folder(self) -> None:
        if files.exists(f"{self.path}/dataset_info.json"):
            return
        system, root = fsspec.core.url_to_fs(self.path)
        below = [str(Path(found).parent) for found in sorted(system.glob(f"{root}/**/dataset_info.json"))[:4]]
        raise FileNotFoundError(f"dataset {self.name!r}: no TFDS dataset in {self.path} (dataset_info.json is missing)"
                                + (f"; there is one in {', '.join(below)}" if below else ""))

    def __getstate__(self) -> dict:
        """Open files stay behind; lengths travel to worker processes."""
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}

    @functools.cached_property
    def _opened(self):
        """(records as bytes, parser of a record, split info). Raises BadEpisode where the split or a field is missing.

        TFDS could decode steps too, but one by one; parsing whole columns is 20 times faster.
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
        metadata = sorted(_names({key: value for key, value in layout.items() if key != "steps"}))
        if missing := sorted({*self._where, *self._name_fields} - {*metadata}):
            raise ValueError(f"{self.path}: no field {missing[0]!r}; an episode has {metadata}")
        records = Records([f"{self.path}/{name}" for name in names], info.shard_lengths, kind)
        return records, ExampleParserNp(layout), info

    @property
    def _name_fields(self) -> list[str]:
        """The fields that an episode's name in a keep file is made of."""
        return [field for _, field, *_ in string.Formatter().parse(self._name) if field] if self.filters.keep else []

    def _example(self, index: int) -> dict:
        """The fields of an episode; those of its steps stand under "steps", each with the steps on the leading axis.
        Pictures are encoded."""
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
        """The steps of each episode, int64 [episodes]. Every record is read once; then PATH/lengths-SPLIT.json holds
        the answer."""
        # An unreadable record counts as one step, so that it is drawn and reported instead of forgotten.
        return np.maximum(np.array(self._scan()["length"], np.int64), 1)

    def kept(self) -> np.ndarray:
        """The stretches where windows may begin, as `Source` says. Reads what `lengths` reads."""
        scanned = self._scan()
        lengths = np.array(scanned["length"], np.int64)
        chosen = np.ones(len(lengths), np.bool_)
        for field, wanted in self._where.items():
            chosen &= [matches(found, wanted) for found in scanned[field]]
        if self.filters.described:
            chosen &= [text not in NO_INSTRUCTION for text in scanned["instruction"]]
        names = (self._name.format_map({field: scanned[field][i] for field in self._name_fields}) or str(i)
                 for i in range(len(lengths)))
        return self.filters.stretches(np.maximum(lengths, 1), chosen | (lengths == 0), names)

    def _scan(self) -> dict[str, list]:
        """{"length": [...]} of all episodes, and {field: [...]} of what filters ask for; an unreadable episode has
        length 0."""
        if self._scanned is None:
            fields = {*self._where, *self._name_fields}
            if self.filters.described:
                fields.add("instruction")
            file, info = f"{self.path}/lengths-{self.split}.json", self._opened[2]
            key = {"shard_lengths": list(info.shard_lengths), "num_bytes": info.num_bytes,
                   "instruction": self.instruction}
            kept = files.read_json(file) if files.exists(file) else {}
            known = kept.get("episodes", {}) if {name: kept.get(name) for name in key} == key else {}
            if not {"length", *fields} <= known.keys():
                wanted = sorted({*fields, *known} - {"length"})
                rows = [self._metadata(i, wanted) for i in range(len(self))]
                known = {name: [row[name] for row in rows] for name in ("length", *wanted)}
                if all(known["length"]):
                    _write_lengths(file, json.dumps({**key, "episodes": known}))
            self._scanned = known
        return self._scanned

    def _metadata(self, index: int, fields: Sequence[str]) -> dict:
        """The length of an episode and those fields of it."""
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
        """The steps per second of each episode, float64 [episodes]."""
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
    """A context with a folder of the files that describe the dataset; for an address it is a copy of them."""
    if not files.is_remote(path):
        return contextlib.nullcontext(path)
    folder = tempfile.TemporaryDirectory()
    for file in files.listed(path):
        name = file.rsplit("/", 1)[1]
        if "-of-" not in name:  # shards have it in their names
            (Path(folder.name) / name).write_bytes(files.read_bytes(file))
    return folder


def _write_lengths(file: str, text: str) -> None:
    """Writes the file of lengths, if the folder can be written to; otherwise every run scans the dataset again."""
    try:
        files.write_text(file, text)
    except OSError as error:
        logging.warning("%s cannot be kept (%s): every run reads all records to find episode lengths", file, error)


def _plain(value):
    """A scalar of the metadata as JSON has it; a text that is not UTF-8 is written as Python shows it."""
    value = value.item() if isinstance(value, (np.ndarray, np.generic)) else value
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _text(value, where: str) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise BadEpisode(f"{where}: the instruction is not UTF-8: {error}") from error


def _as_fields(value: str | Sequence[str]) -> tuple[str, ...]:
    """One field or several, as a tuple; "" is none."""
    return (value,) if isinstance(value, str) and value else tuple(value)


def _field(steps: dict, field: str):
    """The value at "a/b" of nested fields."""
    value = steps
    for key in field.split("/"):
        value = value[key]
    return value


def _names(steps: dict, prefix: str = "") -> list[str]:
    """The names "a/b" of all nested fields."""
    found = []
    for key, value in steps.items():
        found += _names(value, f"{prefix}{key}/") if isinstance(value, dict) else [prefix + key]
    return found


def _first_column(steps: dict):
    return _field(steps, _names(steps)[0])


def _numbers(steps: dict, fields: Sequence[str], where: str) -> np.ndarray | None:
    """Numeric fields side by side, float32 [length, dims]. Raises BadEpisode where a number is not finite."""
    parts = []
    for field in fields:
        rows = np.asarray(_field(steps, field), np.float32)
        rows = rows.reshape(len(rows), -1)
        bad = np.argwhere(~np.isfinite(rows))
        if len(bad):
            step, dim = bad[0]
            raise BadEpisode(f"{where} step {step}: {field}[{dim}] is {rows[step, dim]}")
        parts.append(rows)
    return np.concatenate(parts, 1) if parts else None
