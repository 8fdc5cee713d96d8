"""Rows of LeRobot's tables of steps: of a file with many episodes, only what is asked for is decoded, and kept."""

import functools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.episode import BadEpisode
from data_pipelines.storage import files
from data_pipelines.storage.lru import Lru, checked_identity, identity
from data_pipelines.storage.tables import open_parquet, read_groups

_footers = Lru(4096)  # by file
_episodes = Lru(1024)  # which rows belong to which episode, by file
_groups = Lru(256 * 2**20, size=lambda table: table.nbytes)  # decoded row groups by (file, number, columns)


def read_rows(file: str, columns: tuple[str, ...], first: int = 0, count: int | None = None,
              whole: int | None = None) -> pa.Table:
    """Reads rows first ... first + count of a parquet file, or all, decoding only the row groups that hold them.

    Raises BadEpisode naming the file where it cannot be read or does not have `whole` rows.
    """
    parts, begin, known, table = [], 0, checked_identity(file), _Table(file)
    try:
        footer = table.footer
        count = footer.num_rows if count is None else count
        if whole is not None and footer.num_rows != whole:
            raise BadEpisode(f"{file}: the table has {footer.num_rows} steps, the metadata say {whole}")
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
    except BadEpisode:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise BadEpisode(f"{file}: cannot be read: {error}") from error
    if not parts:
        raise BadEpisode(f"{file}: the table has no steps")
    return parts[0] if len(parts) == 1 else pa.concat_tables(parts)


def runs_of(file: str) -> list[tuple[int, int, int]]:
    """(episode_index, first row, rows) of each stretch of rows of one episode in a table. Raises BadEpisode."""
    known = (checked_identity(file), "runs")
    if (found := _episodes.get(known)) is None:
        numbers = read_rows(file, ("episode_index",))["episode_index"].to_numpy()
        firsts = np.flatnonzero(np.r_[len(numbers) > 0, numbers[1:] != numbers[:-1]])
        counts = np.diff(firsts, append=len(numbers))
        found = _episodes.put(known, list(zip(numbers[firsts].tolist(), firsts.tolist(), counts.tolist())))
    return found


class _Table:
    """A parquet file that is opened only when something is read that no cache holds."""

    def __init__(self, file: str):
        self._file, self._known = file, identity(file)

    @functools.cached_property
    def _opened(self) -> pq.ParquetFile:
        source = files.open_file(self._file) if files.is_remote(self._file) else self._file
        return open_parquet(source, _footers.get(self._known))

    @property
    def footer(self) -> pq.FileMetaData:
        return _footers.get(self._known) or _footers.put(self._known, self._opened.metadata)

    def read(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        return read_groups(self._opened, [group], list(columns), self._file)
