"""Parquet tables. A few hundred bytes can stand for a billion rows, or for one text a million times: what the file's
footer tells is looked at before anything is decoded, and texts before they are spelled out."""

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.storage import files

MAX_ROWS = 2**22  # rows of a metadata table or a row group: a day of recording at 48 steps per second
MAX_BYTES = 2**31  # bytes in memory: of all columns of numbers that are read, or of one column of texts
_BATCH = 2**12  # rows that are decoded before their size is looked at


def read_parquet(file: str, choose: Callable[[list[str]], list[str]] | None = None) -> pa.Table:
    """Reads a whole table; choose: all column names -> those to read. Raises FileNotFoundError where there is none,
    ValueError naming the file where it cannot be read."""
    try:
        with files.open_file(file) as content, open_parquet(content) as opened:
            names = opened.schema_arrow.names
            table = read_groups(opened, range(opened.num_row_groups), choose(names) if choose else names, file)
            table.validate(full=True)  # texts are UTF-8
            return table
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def open_parquet(source, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a table for `read_groups`; footer: known from before. Raises ArrowException and OSError."""
    footer = footer or pq.ParquetFile(source, pre_buffer=False).metadata
    if (rows := _rows(footer, range(footer.num_row_groups))) != footer.num_rows:
        raise pa.ArrowInvalid(f"it holds {rows} rows, its footer says {footer.num_rows}")
    columns = (footer.schema.column(i) for i in range(footer.num_columns))
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(source, metadata=footer, read_dictionary=texts, pre_buffer=False,
                          page_checksum_verification=True)


def read_groups(opened: pq.ParquetFile, groups: Iterable[int], columns: list[str], file: str) -> pa.Table:
    """Reads columns of some row groups. Raises ValueError where they are larger than any that a robot records,
    ArrowException and OSError where they cannot be read.

    No thread of Arrow's ever holds an object of Python: one that lets it go while the interpreter ends aborts the
    process.
    """
    groups, schema = list(groups), opened.schema_arrow
    check_rows(rows := _rows(opened.metadata, groups), file)
    if missing := sorted(set(columns) - set(schema.names)):
        raise KeyError(f"it has no column {missing[0]!r}")
    texts = [name for name in schema.names if name in columns and _holds_texts(schema.field(name).type)]
    numbers = [name for name in schema.names if name in columns and name not in texts]
    found = dict(zip(numbers, _numbers(opened, groups, numbers, file).columns)) if numbers else {}
    for name, column in zip(texts, opened.read_row_groups(groups, texts, use_threads=False).columns if texts else ()):
        _check_bytes(sum(map(_text_bytes, column.chunks)), file)
        found[name] = column.cast(_plain(column.type))
    table = pa.table({name: found[name] for name in schema.names if name in found}).combine_chunks()
    if found and len(table) != rows:
        raise pa.ArrowInvalid(f"it holds {len(table)} rows, its footer says {rows}")
    return table


def _rows(footer: pq.FileMetaData, groups: Iterable[int]) -> int:
    return sum(footer.row_group(group).num_rows for group in groups)


def _numbers(opened: pq.ParquetFile, groups: list[int], columns: list[str], file: str) -> pa.Table:
    """Columns without texts; their size, of which the footer says nothing that a damaged one could not make Arrow abort
    on, is looked at on the way."""
    batches, size = [], 0
    for batch in opened.iter_batches(_BATCH, row_groups=groups, columns=columns, use_threads=False):
        batches.append(batch)
        size += batch.nbytes
        _check_bytes(size, file)
    fields = [opened.schema_arrow.field(name) for name in columns]
    return pa.Table.from_batches(batches, pa.schema(fields))


def check_rows(rows: int, file: str) -> None:
    """Raises ValueError where a table or a row group is larger than any that a robot records."""
    if rows > MAX_ROWS:
        raise ValueError(f"{file} cannot be read: {rows:,} rows at once, at most {MAX_ROWS:,} are expected")


def _check_bytes(size: int, file: str) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{file} cannot be read: {size:,} bytes or more at once, at most {MAX_BYTES:,} are expected")


def _holds_texts(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or (pa.types.is_list(kind) and _holds_texts(kind.value_type))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type with texts spelled out."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def _text_bytes(values: pa.Array) -> int:
    """The bytes of all texts in an array, spelled out."""
    if pa.types.is_list(values.type):
        return _text_bytes(values.flatten())
    if not pa.types.is_dictionary(values.type):
        return 0
    lengths = pc.binary_length(values.dictionary).cast(pa.int64())
    return pc.sum(lengths.take(values.indices)).as_py() or 0
