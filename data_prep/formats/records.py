"""Inputs and outputs of readers: a reader takes a piece of a file and yields documents, and faults with their place."""

from dataclasses import dataclass
from typing import Any, Literal

from ...models.common.config import Record
from ..config import SourceConfig

Format = Literal["text", "jsonl", "csv", "parquet", "arrow", "megatron", "hub"]
Columns = dict[str, Any]


class Piece(Record):
    """A part of a file, cut between documents.

    Attributes:
        path: the file, or its URL; the dataset's name for a shard of the hub.
        start, stop: bytes; row groups of parquet, record batches of Arrow, documents of Megatron, shards of the hub. A
            compressed file is whole: 0 and its bytes.
        first_line: number of the first line (row, document) in the file, from 1.
        rows: of the row group or record batch `start`, if only a part of it: the first row and the end, from 0.
    """

    path: str
    start: int
    stop: int
    first_line: int = 1
    rows: tuple[int, int] | None = None


class Fault(Record):
    """A document, or the rest of a file, that cannot be used.

    Attributes:
        line: of the file, from 1; the row of a table. Of a file that cannot be read to its end, the last good one.
        reason: the problem, and its remedy.
        lost_bytes: of a file from which nothing more can be read; 0 for a single document.
    """

    source: str
    file: str
    line: int
    reason: str
    lost_bytes: int = 0

    def __str__(self) -> str:
        return f"source {self.source}: {self.place}: {self.reason}"

    @property
    def place(self) -> str:
        """File and line for a message, on one line even if the file's name holds a newline."""
        return f"{one_line(self.file)}, line {self.line}"


def one_line(path: str) -> str:
    """A path as text for a message, with control characters and bytes that are not UTF-8 escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


@dataclass(frozen=True)
class RawDocument:
    """A document as read: its text, empty if the row has none, and the columns that filters use."""

    text: str
    columns: Columns
    file: str
    line: int


class UnreadableError(Exception):
    """A file is of another format than its source says; the message is the reason and the remedy."""


@dataclass(frozen=True)
class Context:
    """Settings of a reader: the source's columns, the file's name in messages, and the longest document in bytes."""

    config: SourceConfig
    file: str
    longest: int

    def fault(self, line: int, reason: str, lost_bytes: int = 0) -> Fault:
        """A fault at a line of the file."""
        return Fault(source=self.config.label, file=self.file, line=line, reason=reason, lost_bytes=lost_bytes)

    def too_long(self, line: int) -> Fault:
        """The fault of a document that is longer than allowed."""
        return self.fault(line, f"longer than max_document_bytes={self.longest:,}: raise it, or cut the document up")

    def not_utf8(self, line: int, byte: int) -> Fault:
        """The fault of a document that is not UTF-8 at this byte of it."""
        return self.fault(line, f"not UTF-8 (byte {byte} of the document): convert it")

    def document(self, text: str, columns: Columns, line: int) -> RawDocument | Fault:
        """The document, or the fault of a text that is too long or holds a NUL."""
        # A character takes up to four bytes; only texts that could be too long are encoded to measure them.
        if len(text) > self.longest or (
            4 * len(text) > self.longest and len(text.encode(errors="replace")) > self.longest
        ):
            return self.too_long(line)
        if "\0" in text:
            return self.fault(line, f"NUL byte (character {text.index(chr(0))}): not text, or damaged")
        return RawDocument(text, columns, self.file, line)
