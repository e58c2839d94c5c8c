"""Reading the documents of a slice, one by one, in bounded memory; unreadable ones become faults with file and line."""

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from ...models.common.config import Record
from ..config import SourceConfig
from ..sources.huggingface import read_shard
from .slices import Piece, Slice, import_parquet

BATCH_ROWS = 256
Columns = dict[str, Any]


class Fault(Record):
    """A document, or the rest of a file, that cannot be used.

    Attributes:
        line: of the file, from 1; the row of a parquet file or of a shard of the hub.
        reason: the problem, and its remedy.
        lost_bytes: of a file from which nothing more can be read; 0 for a single document.
    """

    source: str
    file: str
    line: int
    reason: str
    lost_bytes: int = 0

    def __str__(self) -> str:
        return f"source {self.source}: {self.file}, line {self.line}: {self.reason}"


@dataclass(frozen=True)
class RawDocument:
    """A document as read: its text, and the other columns that the filters use."""

    text: str
    columns: Columns
    file: str
    line: int


def read_records(
    part: Slice, config: SourceConfig, revision: str | None, longest: int
) -> Iterator[RawDocument | Fault]:
    """Read every record of a slice, in order: its document, or a fault.

    Args:
        part: the slice.
        config: the source's columns.
        revision: of a dataset of the hub.
        longest: bytes of the longest document allowed.
    """
    for piece in part.pieces:
        if part.format == "hub":
            yield from _read_hub(piece, part, config, revision, longest)
        elif part.format == "parquet":
            yield from _read_parquet(piece, part, config, longest)
        else:
            yield from _read_file(piece, part, config, longest)


def _read_file(piece: Piece, part: Slice, config: SourceConfig, longest: int) -> Iterator[RawDocument | Fault]:
    name, line = str(piece.path), piece.first_line
    try:
        with _open(piece) as file:
            if part.format == "text":
                yield _text(file, name, part.source, longest)
            else:
                for line, data in _lines(file, piece.first_line, longest):
                    if data.strip():
                        yield _json_line(data, name, line, part.source, config, longest)
    except (OSError, EOFError, zstandard.ZstdError, gzip.BadGzipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Fault(
            source=part.source,
            file=name,
            line=line,
            reason=f"the file cannot be read on ({reason}): fetch it again",
            lost_bytes=piece.stop - piece.start,
        )


@contextmanager
def _open(piece: Piece) -> Iterator[BinaryIO]:
    """Open a piece as a stream of its bytes, decompressed."""
    with open(piece.path, "rb") as file:
        if piece.path.suffix == ".gz":
            with gzip.open(file) as stream:
                yield stream  # pyright: ignore[reportReturnType]
        elif piece.path.suffix == ".zst":
            yield io.BufferedReader(_Zstd(file))
        else:
            file.seek(piece.start)
            yield io.BufferedReader(_Bounded(file, piece.stop - piece.start))


class _Bounded(io.RawIOBase):
    """The next `remaining` bytes of a file as a stream."""

    def __init__(self, file: BinaryIO, remaining: int) -> None:
        self._file, self._remaining = file, remaining

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._file.read(min(len(buffer), self._remaining))
        self._remaining -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Zstd(io.RawIOBase):
    """A decompressed stream of zstd frames; `zstandard`'s own accepts a truncated file as complete.

    Raises:
        EOFError: the file ends in the middle of a frame.
    """

    CHUNK = 2**17

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            if self._frame.eof:
                data = self._frame.unused_data or self._file.read(self.CHUNK)
                if not data:
                    return 0
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            else:
                data = self._file.read(self.CHUNK)
                if not data and self._begun:
                    raise EOFError("compressed file ended before the end of its last frame")
                if not data:
                    return 0
            self._begun = True
            self._ready = self._frame.decompress(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _text(file: BinaryIO, name: str, source: str, longest: int) -> RawDocument | Fault:
    data = file.read(longest + 1)
    if len(data) > longest:
        return _too_long(name, 1, source, longest)
    try:
        return _checked(data.decode("utf-8"), {}, name, 1, source)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return Fault(source=source, file=name, line=line, reason=_NOT_UTF8.format(error.start))


_NOT_UTF8 = "not UTF-8 (byte {} of the document): convert it"


def _lines(file: BinaryIO, first: int, longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers; an overlong line is replaced by a placeholder that is still too long."""
    # A byte of text takes up to six as an escape, and there are other columns.
    longest_line = 6 * longest + 100_000
    number = first
    while line := file.readline(longest_line):
        whole = line
        while len(line) == longest_line and not line.endswith(b"\n"):
            line = file.readline(longest_line)
            if not line:
                break
            whole = b"-" * (longest_line + 1)
        yield number, whole
        number += 1


def _json_line(
    data: bytes, name: str, line: int, source: str, config: SourceConfig, longest: int
) -> RawDocument | Fault:
    if len(data) > 6 * longest + 100_000:
        return _too_long(name, line, source, longest)
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault(source=source, file=name, line=line, reason=_NOT_UTF8.format(error.start))
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"not a line of JSON ({getattr(error, 'msg', error)}): correct or remove it"
        return Fault(source=source, file=name, line=line, reason=reason)
    if not isinstance(value, dict):
        return Fault(source=source, file=name, line=line, reason="not a JSON object: correct or remove the line")
    return _row(value, name, line, source, config, longest)


def _row(value: Columns, name: str, line: int, source: str, config: SourceConfig, longest: int) -> RawDocument | Fault:
    text = value.get(config.text_column)
    if not isinstance(text, str):
        reason = f"no text under {config.text_column!r}: set text_column to the one that holds it"
        return Fault(source=source, file=name, line=line, reason=reason)
    # A character takes up to four bytes; only texts that could be too long are encoded to measure them.
    if len(text) > longest or (4 * len(text) > longest and len(text.encode(errors="replace")) > longest):
        return _too_long(name, line, source, longest)
    return _checked(text, value, name, line, source)


def _checked(text: str, columns: Columns, name: str, line: int, source: str) -> RawDocument | Fault:
    if "\0" in text:
        reason = f"NUL byte (character {text.index(chr(0))}): not text, or damaged"
        return Fault(source=source, file=name, line=line, reason=reason)
    return RawDocument(text, columns, name, line)


def _too_long(name: str, line: int, source: str, longest: int) -> Fault:
    reason = f"longer than max_document_bytes={longest:,}: raise it, or cut the document up"
    return Fault(source=source, file=name, line=line, reason=reason)


def _read_parquet(piece: Piece, part: Slice, config: SourceConfig, longest: int) -> Iterator[RawDocument | Fault]:
    parquet = import_parquet()
    from pyarrow import ArrowException

    name, line = str(piece.path), piece.first_line
    size = Path(name).stat().st_size if Path(name).is_file() else 0
    try:
        with parquet.ParquetFile(piece.path) as file:
            present = file.schema_arrow.names
            if config.text_column not in present:
                if piece.start == 0:  # one fault, not one for every row group
                    reason = f"no column {config.text_column!r}: set text_column to one of {', '.join(present)}"
                    yield Fault(source=part.source, file=name, line=line, reason=reason, lost_bytes=size)
                return
            columns = [c for c in (config.text_column, *config.keep, *config.at_least) if c in present]
            groups = list(range(piece.start, piece.stop))
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns):
                for row in batch.to_pylist():
                    yield _row(row, name, line, part.source, config, longest)
                    line += 1
    except (ArrowException, OSError) as error:
        reason = f"the parquet file is damaged ({str(error).splitlines()[0]}): fetch it again"
        yield Fault(source=part.source, file=name, line=line, reason=reason, lost_bytes=size)


def _read_hub(
    piece: Piece, part: Slice, config: SourceConfig, revision: str | None, longest: int
) -> Iterator[RawDocument | Fault]:
    name = f"{piece.path} shard {piece.start}"
    for line, row in enumerate(read_shard(config, revision, piece.start), start=1):
        yield _row(row, name, line, part.source, config, longest)
