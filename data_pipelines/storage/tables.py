"""Parquet tables. A few hundred bytes can stand for a billion rows, or for one text a million times: what the file's
footer tells is looked at before anything is decoded, and texts before they are spelled out."""

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.storage import files

MAX_ROWS = 2**22  # of a table of metadata, or of a row group: a day of recording at 48 steps per second
MAX_VALUES = 2**27  # of a column of a row group: 32 numbers in each of so many rows
MAX_BYTES = 2**28  # of all texts of a column that is read


def read_parquet(file: str, choose: Callable[[list[str]], list[str]] | None = None) -> pa.Table:
    """Reads a whole table; choose: all column names -> those to read. Raises FileNotFoundError where there is none,
    ValueError naming the file where it cannot be read."""
    try:
        with files.opened(file) as content, open_parquet(content) as opened:
            names = opened.schema_arrow.names
            table = read_groups(opened, range(opened.num_row_groups), choose(names) if choose else names, file)
            table.validate(full=True)  # texts are UTF-8
            return table
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def open_parquet(source, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a table for `read_groups`; footer: known from before."""
    footer = footer or pq.ParquetFile(source, pre_buffer=False).metadata
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
    groups = list(groups)
    check_rows(sum(opened.metadata.row_group(group).num_rows for group in groups), file)
    for group in groups:
        _check_size(opened.metadata.row_group(group), columns, file)
    table = opened.read_row_groups(groups, columns, use_threads=False)
    fields = [pa.field(name, _plain(table.schema.field(name).type)) for name in table.column_names]
    for name, column in zip(table.column_names, table.columns):
        if (size := sum(map(_text_bytes, column.chunks))) > MAX_BYTES:
            raise ValueError(f"{file} cannot be read: {size:,} bytes of texts in column {name!r}, at most "
                             f"{MAX_BYTES:,} are expected")
    return table.replace_schema_metadata(None).cast(pa.schema(fields))


def check_rows(rows: int, file: str) -> None:
    """Raises ValueError where a table or a row group is larger than any that a robot records."""
    if rows > MAX_ROWS:
        raise ValueError(f"{file} cannot be read: {rows:,} rows at once, at most {MAX_ROWS:,} are expected")


def _check_size(group: pq.RowGroupMetaData, columns: list[str], file: str) -> None:
    for column in map(group.column, range(group.num_columns)):
        if column.path_in_schema.partition(".")[0] in columns and (
                column.num_values > MAX_VALUES or column.total_uncompressed_size > 8 * MAX_VALUES):
            raise ValueError(f"{file} cannot be read: column {column.path_in_schema!r} has {column.num_values:,} "
                             f"values of {column.total_uncompressed_size:,} bytes at once, at most {MAX_VALUES:,} are "
                             "expected")


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
