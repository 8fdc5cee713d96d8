"""LeRobot datasets, formats v2.0, v2.1 and v3.0, read as they are: tables with pyarrow, video frame by frame.

Times are taken from the table: the frame of a step is the one nearest to its time stamp, and no further off than half
a frame. Frame counts, lengths or times that do not fit together make a `BadEpisode`, never a shifted sample.
"""

import concurrent.futures
import functools
from collections.abc import Sequence

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.sources.filters import EVERYTHING, NO_INSTRUCTION, Filters
from data_pipelines.sources.lerobot_meta import Field, Meta, VideoSpan
from data_pipelines.storage.lru import Lru, checked_identity, identity, reset_identities
from data_pipelines.video import reading as video

_footers = Lru(4096)  # by file
_groups = Lru(256 * 2**20, size=lambda table: table.nbytes)  # decoded row groups by (file, number, columns)


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
        self._views = {view: field("video", camera).column for view, camera in images.items()}
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

    def kept(self) -> np.ndarray:
        """The stretches where windows may begin, as `Source` says."""
        chosen = self._meta.chosen.copy()
        if self.filters.described:
            chosen &= self._described()
        return self.filters.stretches(self._meta.lengths, chosen, map(str, self._meta.numbers.tolist()))

    def published(self, part: str) -> dict[str, np.ndarray] | None:
        """{"mean", "std", "min", "max": float64 [dims]} of "state" or "action" as meta/stats.json has them (lerobot's
        and GEAR's); None where it has none."""
        fields = {"state": self._state, "action": self._action}[part]
        if not fields or not all(field.column in self._meta.stats for field in fields):
            return None
        return {name: np.concatenate([
            np.asarray(self._meta.stats[f.column][name], np.float64).reshape(-1)[f.start:f.end] for f in fields])
            for name in ("mean", "std", "min", "max")}

    def _described(self) -> np.ndarray:
        """Whether each episode has an instruction, bool [episodes]; True where that cannot be read, so that the episode
        is reported when it is drawn."""
        def described(index: int) -> bool:
            try:
                return self._text(self._rows(index, 1, (self._instruction,)), "") not in NO_INSTRUCTION
            except BadEpisode:
                return True

        if self._instruction is None:
            return np.zeros(len(self), np.bool_)
        if self._instruction == "task_index" and self._meta.texts is not None:
            return np.array([any(text not in NO_INSTRUCTION for text in texts) for texts in self._meta.texts])
        return np.array(list(_camera_threads().map(described, range(len(self)))))

    def __len__(self) -> int:
        return len(self._meta.numbers)

    def __getitem__(self, index: int) -> Episode:
        meta = self._meta
        number, length = int(meta.numbers[index]), int(meta.lengths[index])
        steps, where = self._rows(index, length, self._columns), f"{meta.table_of(index)[0]} episode {number}"
        numbers = steps["episode_index"].to_numpy()
        if (other := numbers != number).any():
            raise BadEpisode(f"{where}: its rows belong to episodes {sorted(set(numbers[other].tolist()))[:3]}")
        times, drift = check_times(_matrix(steps, Field("timestamp"), where)[:, 0], meta.rate, where)
        spans = {view: meta.video_of(index, key) for view, key in self._views.items()}
        return Episode(
            dataset=self.name, index=index, length=length, rate=meta.rate, instruction=self._text(steps, where),
            state=_joined(steps, self._state, where), action=_joined(steps, self._action, where),
            read_frames=functools.partial(_read_frames, spans, times, meta.rate), drift=drift)

    def _rows(self, index: int, count: int, columns: tuple[str, ...]) -> pa.Table:
        """The first `count` steps of an episode."""
        file, first = self._meta.table_of(index)
        # where an episode has a file of its own, every row belongs to it
        whole = None if self._meta.shared_files else int(self._meta.lengths[index])
        return read_rows(file, first, count, columns, whole)

    def _text(self, steps: pa.Table, where: str) -> str:
        if self._instruction is None:
            return ""
        try:
            value = steps[self._instruction][0].as_py()
        except UnicodeDecodeError as error:
            raise BadEpisode(f"{where}: {self._instruction!r} is not UTF-8: {error}") from error
        if isinstance(value, str):
            return value
        if value not in self._meta.tasks:
            raise BadEpisode(f"{where}: {self._instruction} = {value} is none of the {len(self._meta.tasks)} tasks")
        return self._meta.tasks[value]


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def read_rows(file: str, first: int, count: int, columns: tuple[str, ...], whole: int | None = None) -> pa.Table:
    """Reads rows first ... first + count of a parquet file, decoding only the row groups that hold them.

    Raises BadEpisode naming the file where it cannot be read, ends before, or does not have `whole` rows.
    """
    parts, begin, known, table = [], 0, checked_identity(file), _Table(file)
    try:
        footer = table.footer
        for group in range(footer.num_row_groups):
            end = begin + footer.row_group(group).num_rows
            if begin < first + count and end > first:
                key = (known, group, columns)
                rows = _groups.get(key)
                if rows is None:
                    rows = _groups.put(key, table.read(group, columns))
                parts.append(rows.slice(max(first - begin, 0), min(end, first + count) - max(begin, first)))
            begin = end
    except FileNotFoundError as error:
        raise BadEpisode(f"{file}: no such file") from error
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise BadEpisode(f"{file}: cannot be read: {error}") from error
    if begin < first + count or begin != (whole or begin):
        raise BadEpisode(f"{file}: the table has {begin} steps, the metadata say {whole or first + count}")
    return parts[0] if len(parts) == 1 else pa.concat_tables(parts)


class _Table:
    """A parquet file that is opened only when something is read that no cache holds."""

    def __init__(self, file: str):
        self._file, self._known = file, identity(file)

    @functools.cached_property
    def _opened(self) -> pq.ParquetFile:
        source = fsspec.open(self._file, "rb").open() if "://" in self._file else self._file
        return pq.ParquetFile(source, metadata=_footers.get(self._known), page_checksum_verification=True)

    @property
    def footer(self) -> pq.FileMetaData:
        return _footers.get(self._known) or _footers.put(self._known, self._opened.metadata)

    def read(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        rows = self._opened.read_row_group(group, list(columns), use_threads=False)
        if missing := set(columns) - set(rows.column_names):
            raise KeyError(f"it has no column {sorted(missing)[0]!r}")
        return rows


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


def check_times(times: np.ndarray, rate: float, where: str) -> tuple[np.ndarray, float]:
    """Returns (`times` [length], the most that one of them is off `rate`) in seconds. Raises BadEpisode where they go
    back or drift by half a step."""
    back = np.flatnonzero(~(np.diff(times) > 0))
    if len(back):
        step = back[0]
        raise BadEpisode(f"{where}: time goes back at step {step + 1}, from {times[step]:.3f} s to "
                         f"{times[step + 1]:.3f} s")
    drift = np.abs(times - times[0] - np.arange(len(times)) / rate)
    if not drift.max() <= 0.5 / rate:
        worst = int(drift.argmax())
        raise BadEpisode(f"{where}: step {worst} is at {times[worst]:.3f} s, {drift[worst]:.3f} s off {rate:g} steps "
                         f"per second")
    return times, float(drift.max())


@functools.cache
def _camera_threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(8, "camera")


def _read_frames(spans: dict[str, VideoSpan], times: np.ndarray, rate: float,
                 indices: np.ndarray) -> dict[str, np.ndarray]:
    """Decodes the asked steps alone, of all cameras at once: view -> uint8 [n, H, W, 3]."""
    def read(span: VideoSpan) -> np.ndarray:
        return video.read_at(span.file, span.begin + times[np.asarray(indices)], within=0.5 / rate, frames=span.frames)

    if len(spans) == 1:
        return {view: read(span) for view, span in spans.items()}
    return dict(zip(spans, _camera_threads().map(read, spans.values())))
