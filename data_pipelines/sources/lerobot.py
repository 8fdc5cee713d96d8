"""LeRobot datasets, formats v2.0, v2.1 and v3.0, read as they are: tables with pyarrow, video frame by frame; cameras
may also lie in the tables, as pictures.

Frame counts, lengths or times that do not fit together make a `BadEpisode`, never a shifted sample (alignment.py).
"""

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.sources.alignment import VideoSpan
from data_pipelines.sources.filters import EVERYTHING, Filters
from data_pipelines.sources.lerobot_frames import camera_threads, check_times, disagreements, read_frames
from data_pipelines.sources.lerobot_meta import Field, Meta
from data_pipelines.sources.lerobot_rows import read_rows, runs_of
from data_pipelines.sources.texts import any_said, text, texts_of
from data_pipelines.storage.lru import reset_identities
from data_pipelines.video import pictures
from world_model import kinds


class LeRobotSource:
    """`Source` over the episodes of one dataset folder."""

    def __init__(self, name: str, path: str, *, images: dict[str, str], state: str | Sequence[str] = (),
                 action: str | Sequence[str] = (), instruction: str | None = "task_index",
                 filters: Filters = EVERYTHING):
        """Args:
          path: the folder that holds meta/, or its address for fsspec (gs://, s3://, ...).
          images: view name -> camera; state, action: one name or several, joined in order. A name is one of
            modality.json, or a feature as "observation.state".
          instruction: annotation or column with the task's text or number; None for none.
          filters: `where` names columns of meta/episodes; `successful` is where={"success": True}; a keep file names
            episodes by episode_index.

        Raises FileNotFoundError where there is no dataset, ValueError naming the metadata that make no sense.
        """
        reset_identities()
        where = {**filters.where, **({"success": True} if filters.successful else {})}
        self.name, self.filters, self._meta = name, filters, Meta(path, where)
        field = self._meta.field
        cameras = {view: field("video", camera).column for view, camera in images.items()}
        self._pictures = {view: column for view, column in cameras.items() if self._meta.holds_pictures(column)}
        self._views = {view: column for view, column in cameras.items() if view not in self._pictures}
        self._state = tuple(field("state", name) for name in _names(state))
        self._action = tuple(field("action", name) for name in _names(action))
        self._instruction = instruction and field("annotation", instruction).column
        columns = {f.column for f in (*self._state, *self._action)} | {"timestamp", "episode_index"}
        self._columns = tuple(sorted(columns | ({self._instruction} if self._instruction else set())))

    def lengths(self) -> np.ndarray:
        """The steps of each episode, int64 [episodes], as the metadata say."""
        return self._meta.lengths

    def rates(self) -> np.ndarray:
        """The steps per second of each episode, float64 [episodes]."""
        return np.full(len(self), self._meta.rate)

    def stretches(self) -> np.ndarray:
        """The stretches where windows may begin, as `Source` says."""
        chosen = self._meta.chosen.copy()
        if self.filters.described:
            chosen &= self._described()
        return self.filters.stretches(self._meta.lengths, chosen, map(str, self._meta.numbers.tolist()))

    def published(self, part: str) -> dict[str, np.ndarray]:
        """{"mean", "std", "min", "max": float64 [dims]} of "state" or "action", as many of them as meta/stats.json has
        (lerobot's and GEAR's). Raises ValueError where one is no list of numbers."""
        fields, found = {"state": self._state, "action": self._action}[part], {}
        published = [kinds.check(self._meta.stats.get(field.column) or {}, kinds.fields({}),
                                  f"{self._meta.path}/meta/stats.json: {field.column}") for field in fields]
        for name in ("mean", "std", "min", "max"):
            if not fields or any(each.get(name) is None for each in published):
                continue
            try:
                found[name] = np.concatenate([np.asarray(each[name], np.float64).reshape(-1)[field.start:field.end]
                                              for field, each in zip(fields, published)])
            except (TypeError, ValueError) as error:
                raise ValueError(f"dataset {self.name!r}: meta/stats.json: {name} of {part} is no list of numbers: "
                                 f"{error}") from error
        return found

    def _described(self) -> np.ndarray:
        """Whether each episode has an instruction, bool [episodes]; True where that cannot be read, so that the episode
        is reported when it is drawn."""
        def described(index: int) -> bool:
            try:
                texts = self._texts(self._rows(index, (self._instruction,)), "")
                return any_said(text for _, text in texts)
            except BadEpisode:
                return True

        if self._instruction is None:
            return np.zeros(len(self), np.bool_)
        if self._instruction == "task_index" and self._meta.texts is not None:
            return np.array([any_said(texts or ()) for texts in self._meta.texts])
        return np.array(list(camera_threads().map(described, range(len(self)))))

    def __len__(self) -> int:
        return len(self._meta.numbers)

    def __getitem__(self, index: int) -> Episode:
        meta = self._meta
        number, length = int(meta.numbers[index]), int(meta.lengths[index])
        steps, where = self._rows(index, self._columns), f"{meta.table_of(index)[0]} episode {number}"
        numbers = steps["episode_index"].to_numpy()
        if (other := numbers != number).any():
            raise BadEpisode(f"{where}: its rows belong to episodes {sorted(set(numbers[other].tolist()))[:3]}")
        times, drift = check_times(_matrix(steps, Field("timestamp"), where)[:, 0], meta.rate, where)
        spans = {view: meta.video_of(index, key) for view, key in self._views.items()}
        texts = self._texts(steps, where)
        return Episode(
            dataset=self.name, index=index, length=length, rate=meta.rate, instruction=texts[0][1], instructions=texts,
            state=_joined(steps, self._state, where), action=_joined(steps, self._action, where),
            read_frames=functools.partial(self._read, index, spans, times), drift=drift,
            disagreements=functools.partial(disagreements, spans, times, meta.rate))

    @property
    def files(self) -> list[str]:
        """The path or address of each table and video of the episodes. Raises BadEpisode where the metadata do not say
        where one is."""
        found = set()
        for index in range(len(self)):
            found |= {self._meta.table_of(index)[0], *(self._meta.video_of(index, key).file
                                                       for key in self._views.values())}
        return sorted(found)

    def _read(self, index: int, spans: dict[str, VideoSpan], times: np.ndarray, indices: np.ndarray
              ) -> dict[str, np.ndarray]:
        """Decodes the asked steps alone, of all cameras: view -> uint8 [n, H, W, 3]."""
        found = read_frames(spans, times, self._meta.rate, indices) if spans else {}
        if self._pictures:
            rows = self._rows(index, tuple(sorted({*self._pictures.values(), "episode_index"})))
            where = f"{self._meta.table_of(index)[0]} episode {self._meta.numbers[index]}"
            encoded = {view: _encoded(rows[column], f"{where} {column}") for view, column in self._pictures.items()}
            found |= pictures.read(encoded, self._pictures, where, indices)
        return found

    def _rows(self, index: int, columns: tuple[str, ...]) -> pa.Table:
        """The steps of an episode."""
        file, whole = self._meta.table_of(index)
        if whole is not None:
            return read_rows(file, columns, whole=whole)
        number, length = int(self._meta.numbers[index]), int(self._meta.lengths[index])
        runs = [run for run in runs_of(file) if run[0] == number]
        if [count for _, _, count in runs] != [length]:
            raise BadEpisode(f"{file}: the table has {sum(count for *_, count in runs)} steps of episode {number}"
                             f"{' apart' if len(runs) > 1 else ''}, the metadata say {length}")
        return read_rows(file, columns, runs[0][1], length)

    def _texts(self, steps: pa.Table, where: str) -> tuple:
        """What `Episode.instructions` holds."""
        if self._instruction is None:
            return ((0, ""),)
        column = steps[self._instruction].combine_chunks()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = column.cast(pa.binary())  # one text that is not UTF-8 does not spoil the others
        return texts_of(column.to_pylist(), self._text, where)

    def _text(self, value: object) -> str:
        """The text of a step's value, which may be the number of a task. Raises ValueError."""
        if not isinstance(value, (int, float)):
            return "" if value is None else text(value, repr(self._instruction))
        if (number := int(value)) != value or number not in self._meta.tasks:
            raise ValueError(f"{self._instruction} = {value} is none of the {len(self._meta.tasks)} tasks")
        return self._meta.tasks[number]


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def _encoded(column: pa.ChunkedArray, where: str) -> list[bytes | None]:
    """The PNG or JPEG files in a column of pictures; a picture is a file, or a struct with its "bytes". Raises
    BadEpisode where it is neither."""
    try:
        return (pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column).to_pylist()
    except pa.ArrowException as error:
        raise BadEpisode(f"{where}: no pictures: {error}") from error


def _joined(steps: pa.Table, fields: Sequence[Field], where: str) -> np.ndarray | None:
    """The fields side by side, float32 [length, dims]; None where there are none."""
    return np.concatenate([_matrix(steps, f, where) for f in fields], 1).astype(np.float32) if fields else None


def _matrix(steps: pa.Table, field: Field, where: str) -> np.ndarray:
    """A column of numbers or of vectors, float64 [rows, dims]. Raises BadEpisode where its rows are not alike."""
    column = steps[field.column].combine_chunks()
    widths = {1}
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        widths = set(pc.list_value_length(column).unique().to_pylist())
        column = column.flatten()
    if len(widths) > 1 or None in widths:
        raise BadEpisode(f"{where}: the rows of {field.column!r} have {sorted(widths, key=str)} numbers")
    try:
        values = column.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(steps), -1)
    except (TypeError, ValueError) as error:
        raise BadEpisode(f"{where}: {field.column!r} does not hold numbers: {error}") from error
    if field.end is not None and field.end > values.shape[1]:
        raise BadEpisode(f"{where}: {field.column!r} has {values.shape[1]} numbers, modality.json wants "
                         f"{field.start}:{field.end}")
    return values[:, field.start:field.end]
