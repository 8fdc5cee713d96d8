"""Episodes in RLDS layout from a TFDS dataset in array_record or tfrecord files, read without TensorFlow.

Arguments or a schema (sources/rlds_schemas.py) name the fields, so that another dataset takes other arguments and not
another reader. Pictures stay encoded until a window asks for them.
"""

import functools
import json
import logging
import string
from collections.abc import Sequence

import numpy as np

from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.sources.examples import numbers, parse, plain
from data_pipelines.sources.filters import EVERYTHING, Filters, matches
from data_pipelines.sources.records import Records
from data_pipelines.sources.rlds_schemas import get_schema
from data_pipelines.sources.rlds_split import STEPS, Split, open_split
from data_pipelines.sources.texts import any_said, text, texts_of
from data_pipelines.storage import files
from data_pipelines.storage.lru import reset_identities
from data_pipelines.video import pictures
from world_model import kinds

_KEPT = kinds.fields({"episodes": kinds.map_of(kinds.list_of(kinds.anything))})  # the file of lengths


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
        below = [file.rpartition("/")[0] for file in files.find_files(self.path, "/dataset_info.json")[:4]]
        raise FileNotFoundError(f"dataset {self.name!r}: no TFDS dataset in {self.path} (dataset_info.json is missing)"
                                + (f"; there is one in {', '.join(below)}" if below else ""))

    def __getstate__(self) -> dict:
        """Open files stay behind; lengths travel to worker processes."""
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}

    @functools.cached_property
    def _opened(self) -> tuple[Records, Split]:
        """(records as bytes, what the metadata say of them). Raises BadEpisode where the split or a field is missing,
        ValueError where the metadata make no sense."""
        split = open_split(self.path, self.split)
        fields = split.fields
        steps = sorted(name.removeprefix(STEPS) for name in fields if name.startswith(STEPS))
        for field in self._step_fields:
            if field not in steps:
                raise BadEpisode(f"{self.path}: no field {field!r}; steps have {steps}")
        metadata = sorted(name for name in fields if not name.startswith(STEPS))
        if missing := sorted({*self._where, *self._name_fields} - {*metadata}):
            raise ValueError(f"{self.path}: no field {missing[0]!r}; an episode has {metadata}")
        return Records([f"{self.path}/{name}" for name in split.shards], split.info.shard_lengths, split.kind), split

    @property
    def _step_fields(self) -> list[str]:
        """The fields of a step that are read."""
        return [field for field in (*self.images.values(), *self.state, *self.action, self.instruction) if field]

    @property
    def _name_fields(self) -> list[str]:
        """The fields that an episode's name in a keep file is made of."""
        return [field for _, field, *_ in string.Formatter().parse(self._name) if field] if self.filters.keep else []

    def _example(self, index: int, metadata: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], int]:
        """({field: values} of an episode's steps and metadata, number of steps); a field of the steps has them on its
        leading axis. Raises BadEpisode where one is missing, or has fewer steps than another."""
        from google.protobuf.message import DecodeError

        records, split = self._opened
        names = {field: STEPS + field for field in self._step_fields or [split.plainest()]}
        try:
            found = parse(records[index], {name: split.fields[name] for name in (*names.values(), *metadata)})
            columns = {field: found[name] for field, name in names.items()}
            length = len(next(iter(columns.values())))
            for field, rows in columns.items():
                if len(rows) != length:
                    raise ValueError(f"{field!r} has shape {rows.shape} in {length} steps")
        except BadEpisode as error:
            raise BadEpisode(f"{self._place(index)}: {error}") from error
        except (DecodeError, RuntimeError, ValueError, KeyError, TypeError, IndexError, OSError) as error:
            raise BadEpisode(f"{self._place(index)}: the record cannot be read: {error}") from error
        return columns | {name: found[name] for name in metadata}, length

    def _place(self, index: int) -> str:
        return f"{self.path} split {self.split} episode {index}"

    def lengths(self) -> np.ndarray:
        """The steps of each episode, int64 [episodes]. Every record is read once; then PATH/lengths-SPLIT.json holds
        the answer."""
        return _shown(self._scan()["length"])

    def stretches(self) -> np.ndarray:
        """The stretches where windows may begin, as `Source` says. Reads what `lengths` reads."""
        scanned = self._scan()
        lengths = np.array(scanned["length"], np.int64)
        chosen = np.ones(len(lengths), np.bool_)
        for field, wanted in self._where.items():
            chosen &= [matches(found, wanted) for found in scanned[field]]
        if self.filters.described:
            chosen &= [bool(said) for said in scanned["described"]]
        names = (self._name.format_map({field: scanned[field][i] for field in self._name_fields}) or str(i)
                 for i in range(len(lengths)))
        return self.filters.stretches(_shown(lengths), chosen | (lengths < 0), names)

    def _scan(self) -> dict[str, list]:
        """{"length": [...]} of all episodes, and {field: [...]} of what filters ask for; an unreadable episode has
        length -1."""
        if self._scanned is None:
            fields = {*self._where, *self._name_fields}
            if self.filters.described:
                fields.add("described")
            file, info = f"{self.path}/lengths-{self.split}.json", self._opened[1].info
            key = {"shard_lengths": list(info.shard_lengths), "num_bytes": info.num_bytes,
                   "instruction": self.instruction}
            kept = files.read_json(file, _KEPT) if files.exists(file) else {}
            known = kept.get("episodes", {}) if {name: kept.get(name) for name in key} == key else {}
            if not {"length", *fields} <= known.keys() or {len(column) for column in known.values()} != {len(self)}:
                wanted = sorted({*fields, *known} - {"length", "instruction"})  # the last is of former versions
                rows = [self._metadata(i, wanted) for i in range(len(self))]
                known = {name: [row[name] for row in rows] for name in ("length", *wanted)}
                if all(length >= 0 for length in known["length"]):
                    _write_lengths(file, json.dumps({**key, "episodes": known}))
            self._scanned = known
        return self._scanned

    def _metadata(self, index: int, fields: Sequence[str]) -> dict:
        """The length of an episode and those fields of it."""
        metadata = [field for field in fields if field != "described"]
        try:
            found, length = self._example(index, metadata)
            row = {field: plain(found[field]) for field in metadata}
            if "described" in fields:
                row["described"] = any_said(said for _, said in self._texts(found, length, ""))
        except BadEpisode:
            return {"length": -1} | dict.fromkeys(fields)
        return {"length": length, **row}

    def _texts(self, columns: dict[str, np.ndarray], length: int, where: str) -> tuple:
        """What `Episode.instructions` holds."""
        return texts_of(columns[self.instruction], text, where) if self.instruction and length else ((0, ""),)

    def rates(self) -> np.ndarray:
        """The steps per second of each episode, float64 [episodes]."""
        return np.full(len(self), self.rate)

    @property
    def files(self) -> list[str]:
        """The path or address of each shard."""
        return self._opened[0].shards

    def __len__(self) -> int:
        return len(self._opened[0])

    def __getitem__(self, index: int) -> Episode:
        where = self._place(index)
        columns, length = self._example(index)
        if not length:
            raise BadEpisode(f"{where} has no steps")
        texts = self._texts(columns, length, where)
        return Episode(
            dataset=self.name, index=index, length=length, rate=self.rate, instruction=texts[0][1], instructions=texts,
            state=numbers(columns, self.state, where), action=numbers(columns, self.action, where),
            read_frames=functools.partial(pictures.read, {view: columns[field] for view, field in self.images.items()},
                                          self.images, where))


def _shown(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Lengths, int64; an unreadable record counts as one step, so that it is drawn and reported, not forgotten."""
    return np.abs(np.array(lengths, np.int64))


def _write_lengths(file: str, text: str) -> None:
    """Writes the file of lengths, if the folder can be written to; otherwise every run scans the dataset again."""
    try:
        files.write_text(file, text)
    except OSError as error:
        logging.warning("%s cannot be kept (%s): every run reads all records to find episode lengths", file, error)


def _as_fields(value: str | Sequence[str]) -> tuple[str, ...]:
    """One field or several, as a tuple; "" is none."""
    return (value,) if isinstance(value, str) and value else tuple(value)
