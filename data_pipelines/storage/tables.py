"""Small parquet tables, read whole. A few hundred bytes can stand for a billion rows, so that their number, which the
file's footer tells, is looked at before anything is decoded."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.storage import files

MAX_ROWS = 2**22  # of a table of metadata, or of a row group: a day of recording at 48 steps per second


def check_rows(rows: int, file: str) -> None:
    """Raises ValueError where a table or a row group is larger than any that a robot records."""
    if rows > MAX_ROWS:
        raise ValueError(f"{file} cannot be read: {rows:,} rows at once, at most {MAX_ROWS:,} are expected")


def read_parquet(file: str, choose: Callable[[list[str]], list[str]] | None = None) -> pa.Table:
    """Reads a whole table; choose: all column names -> those to read. Raises FileNotFoundError where there is none,
    ValueError naming the file where it cannot be read.

    No thread of Arrow's ever holds an object of Python: one that lets it go while the interpreter ends aborts the
    process.
    """
    try:
        with files.opened(file) as content, pq.ParquetFile(content, pre_buffer=False) as opened:
            check_rows(opened.metadata.num_rows, file)
            table = opened.read(choose(opened.schema_arrow.names) if choose else None, use_threads=False)
            table.validate(full=True)  # texts are UTF-8
            return table
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
