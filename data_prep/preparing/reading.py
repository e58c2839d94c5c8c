"""Reading the documents of a slice, one by one, in bounded memory; unreadable ones become faults with file and line."""

import os
from collections.abc import Iterator

from ...models.common.errors import UserError
from ..config import SourceConfig
from ..formats.columns import row_document
from ..formats.megatron import read_megatron
from ..formats.records import Context, Fault, Piece, RawDocument, UnreadableError
from ..formats.streams import READ_ERRORS, open_piece
from ..formats.tables import read_table, table_errors
from ..formats.texts import read_csv, read_jsonl, read_text
from ..sources.huggingface import read_shard
from .slices import Slice

STREAM_READERS = {"text": read_text, "jsonl": read_jsonl, "csv": read_csv}


def read_records(
    part: Slice, config: SourceConfig, revision: str | None, longest: int
) -> Iterator[RawDocument | Fault]:
    """Read every record of a slice, in order: its document, or a fault.

    Args:
        part: the slice.
        config: the source's columns.
        revision: of a dataset of the hub.
        longest: bytes of the longest document allowed.

    Raises:
        UserError: a file of the hub cannot be fetched.
    """
    for piece in part.pieces:
        name = f"{piece.path} shard {piece.start}" if part.format == "hub" else piece.path
        yield from _to_the_end(piece, part, Context(config, name, longest), revision)


def _to_the_end(piece: Piece, part: Slice, context: Context, revision: str | None) -> Iterator[RawDocument | Fault]:
    """The records of a piece; where the file cannot be read on, a fault says after which one."""
    last = None
    is_table = part.format in ("parquet", "arrow")
    errors = (UnreadableError, *READ_ERRORS, *(table_errors() if is_table else ()))
    try:
        for record in _records(piece, part, context, revision):
            last = record.line
            yield record
    except errors as error:
        if "://" in piece.path and isinstance(error, OSError):
            raise UserError(
                f"source {context.config.label}: {piece.path} cannot be fetched ({_first_line(error)}): check the "
                "network; the same command goes on with what is missing"
            ) from error
        lost = piece.stop - piece.start if not is_table else _size(piece)
        if isinstance(error, UnreadableError) and last is None:
            yield context.fault(piece.first_line, str(error), lost)
            return
        what = f"the {part.format} file is damaged and cannot be read on" if is_table else "the file cannot be read on"
        after = f"after line {last}, rest unknown" if last is not None else "nothing of it was read"
        remedy = "correct it" if isinstance(error, UnreadableError) else "fetch it again"
        reason = f"{what} ({_first_line(error)}), {after}: {remedy}"
        yield context.fault(last or piece.first_line, reason, lost)


def _records(piece: Piece, part: Slice, context: Context, revision: str | None) -> Iterator[RawDocument | Fault]:
    if part.format == "hub":
        for line, row in enumerate(read_shard(context.config, revision, piece.start), start=1):
            yield row_document(row, line, context)
    elif part.format in ("parquet", "arrow"):
        yield from read_table(piece, part.format, context)
    elif part.format == "megatron":
        yield from read_megatron(piece, context)
    else:
        with open_piece(piece) as file:
            yield from STREAM_READERS[part.format](file, piece.first_line, context)


def _size(piece: Piece) -> int:
    try:
        return os.path.getsize(piece.path)
    except OSError:  # gone, or of the hub
        return 0


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
