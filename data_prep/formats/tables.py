"""Readers of parquet and Arrow files: row groups and record batches to documents."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from ...models.common.errors import UserError
from .columns import listed, row_document
from .records import Context, Fault, Piece, RawDocument, UnreadableError
from .streams import open_input

BATCH_ROWS = 256
LARGEST_SHARE = 16  # parts of a row group or record batch at most, since each part decodes what lies before it

Table = Any  # pyarrow.parquet.ParquetFile or an Arrow reader; the package is imported only where a source needs it


def import_pyarrow():
    """Import `pyarrow` with its modules, which only tables need.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UserError('a source of tables needs the package pyarrow: pip install "echo-lm[cluster]"') from error
    return pyarrow


def table_errors() -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged table raises."""
    return (import_pyarrow().ArrowException, OSError, EOFError)


def table_groups(path: str, form: str) -> list[tuple[int, int]]:
    """Rows and bytes of the row groups of a parquet file, or the record batches of an Arrow file.

    Raises:
        table_errors(): the file is damaged.
    """
    if form == "parquet":
        with open_input(path) as file, import_pyarrow().parquet.ParquetFile(file) as table:
            groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in groups]
    with _arrow_batches(path) as (_, batches):
        return [(batch.num_rows, batch.nbytes) for batch in batches]


def table_pieces(path: str, groups: list[tuple[int, int]], unit_bytes: int) -> list[tuple[Piece, int]]:
    """Pieces of a table with the bytes of each: a row group (record batch), or parts of one that is large."""
    pieces, first = [], 1
    for i, (rows, size) in enumerate(groups):
        parts = max(1, min(LARGEST_SHARE, size // unit_bytes, rows))
        borders = [rows * part // parts for part in range(parts + 1)]
        for start, stop in pairwise(borders):
            part = (start, stop) if parts > 1 else None
            piece = Piece(path=path, start=i, stop=i + 1, first_line=first + start, rows=part)
            pieces.append((piece, size // parts))
        first += rows
    return pieces


def read_table(piece: Piece, form: str, context: Context) -> Iterator[RawDocument | Fault]:
    """The documents of a piece of a parquet or Arrow file.

    Raises:
        UnreadableError: the file has no such column.
        table_errors(): it is damaged.
    """
    opened = _parquet_batches if form == "parquet" else _piece_of_arrow
    start, stop = piece.rows or (0, None)
    line, position = piece.first_line, 0
    with opened(piece, context) as (names, batches):
        if not _has(names, context.config.text_column):
            if piece.start == 0 and not start:  # one fault, not one for every piece
                raise UnreadableError(
                    f"no column {context.config.text_column!r}: set text_column to one of {listed(names)}"
                )
            return
        for batch in batches:
            begin, end = max(start - position, 0), batch.num_rows if stop is None else stop - position
            for row in _rows(batch.slice(begin, max(0, min(end, batch.num_rows) - begin))):
                if isinstance(row, dict):
                    yield row_document(row, line, context)
                else:
                    yield context.fault(line, row)
                line += 1
            position += batch.num_rows
            if stop is not None and position >= stop:
                return


def _has(names: list[str], wanted: str) -> bool:
    return wanted in names or wanted.partition(".")[0] in names


def _rows(batch: Table) -> Iterator[dict[str, Any] | str]:
    """The rows of a record batch, or the reason why it cannot be converted."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # invalid UTF-8, or a date that Python has no value for
        pass
    for i in range(batch.num_rows):
        try:
            yield batch.slice(i, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield f"not UTF-8 (byte {error.start} of the document): convert it"
        except (ValueError, OverflowError) as error:
            yield f"a value of the row cannot be read ({str(error).splitlines()[0]}): correct it"


@contextmanager
def _parquet_batches(piece: Piece, context: Context) -> Iterator[tuple[list[str], Iterator[Table]]]:
    config = context.config
    with open_input(piece.path) as file, import_pyarrow().parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        wanted = [name for name in (config.text_column, *config.keep, *config.at_least) if _has(names, name)]
        columns = [name if name in names else name.partition(".")[0] for name in wanted]
        groups = range(piece.start, piece.stop)
        yield names, table.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=list(dict.fromkeys(columns)))


@contextmanager
def _piece_of_arrow(piece: Piece, context: Context) -> Iterator[tuple[list[str], Iterator[Table]]]:
    with _arrow_batches(piece.path) as (names, batches):
        own = (batch for i, batch in enumerate(batches) if piece.start <= i < piece.stop)
        yield names, (part.slice(i, BATCH_ROWS) for part in own for i in range(0, part.num_rows, BATCH_ROWS))


@contextmanager
def _arrow_batches(path: str) -> Iterator[tuple[list[str], Iterator[Table]]]:
    """Names of the columns and the record batches of an Arrow file, whether of the file or the stream format."""
    pyarrow = import_pyarrow()
    with open_input(path) as file:
        is_file_format = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file_format:
            with pyarrow.ipc.open_file(file) as reader:
                yield reader.schema.names, (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            with pyarrow.ipc.open_stream(file) as reader:
                yield reader.schema.names, iter(reader)
