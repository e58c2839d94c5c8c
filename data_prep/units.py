"""Units of work: slices of the input that are tokenized apart, in any order, by anyone."""

import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..models.errors import UserError
from .config import SourceConfig
from .documents import normalise
from .sources import SourceFiles


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Piece(_Record):
    """Bytes `start` to `stop` of a file: a whole text file, or whole lines."""

    path: Path
    start: int
    stop: int


class Slice(_Record):
    """The input of one unit of work: pieces of one source, in order."""

    source: str
    format: Literal["text", "jsonl"]
    text_column: str
    pieces: tuple[Piece, ...]


class InputFile(_Record):
    """A file of a source, and what it held when the plan was made."""

    path: Path
    bytes: int
    sha256: str


class SourcePlan(_Record):
    """A source, found and cut into slices."""

    name: str
    kind: str
    licence: str
    files: tuple[InputFile, ...]
    slices: tuple[Slice, ...]

    @property
    def bytes(self) -> int:
        """Input bytes."""
        return sum(piece.stop - piece.start for part in self.slices for piece in part.pieces)


def plan_source(config: SourceConfig, found: SourceFiles, unit_bytes: int) -> SourcePlan:
    """Cut a source into slices of about `unit_bytes`, each file hashed on the way.

    Raises:
        UserError: the source holds nothing.
    """
    left = config.limit_documents
    files, pieces = [], []
    for path in found.files:
        if left == 0:
            break
        try:
            cut, file, documents = _cut_file(path.resolve(), found.format, unit_bytes, left)
        except OSError as error:
            raise UserError(f"source {config.label}: {path} cannot be read ({error.strerror})") from error
        left = left if left is None else left - documents
        files.append(file)
        pieces.extend(cut)
    if not pieces:
        raise UserError(f"source {config.label} is empty: {len(found.files)} files without any text")
    groups: list[list[Piece]] = []
    filled = unit_bytes
    for piece in pieces:
        if filled >= unit_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(piece)
        filled += piece.stop - piece.start
    slices = tuple(
        Slice(source=config.label, format=found.format, text_column=found.text_column, pieces=tuple(group))
        for group in groups
    )
    return SourcePlan(name=config.label, kind=found.kind, licence=found.licence, files=tuple(files), slices=slices)


def _cut_file(path: Path, form: str, unit_bytes: int, limit: int | None) -> tuple[list[Piece], InputFile, int]:
    """Pieces of a file, each of whole lines and about `unit_bytes`; its hash; how many documents the pieces hold."""
    digest = hashlib.sha256()
    borders = [0]
    documents = position = 0
    with open(path, "rb") as file:
        for line in file:
            digest.update(line)
            position += len(line)
            if form == "jsonl" and documents != limit:
                documents += bool(line.strip())
                if position - borders[-1] >= unit_bytes or documents == limit:
                    borders.append(position)
    if form == "text":
        documents = int(position > 0)
    if borders[-1] < position and (form == "text" or documents != limit):
        borders.append(position)
    pieces = [Piece(path=path, start=a, stop=b) for a, b in pairwise(borders)]
    return pieces, InputFile(path=path, bytes=position, sha256=digest.hexdigest()), documents


def read_documents(part: Slice) -> Iterator[str]:
    """The slice's documents, normalised, in order; those without any text are left out.

    Raises:
        UserError: a file is gone, is not UTF-8, or a line is no object with the text column; file and byte are named.
    """
    for piece in part.pieces:
        try:
            with open(piece.path, "rb") as file:
                file.seek(piece.start)
                data = file.read(piece.stop - piece.start)
        except OSError as error:
            raise UserError(f"source {part.source}: {piece.path} cannot be read ({error.strerror})") from error
        lines = data.splitlines(keepends=True) if part.format == "jsonl" else [data]
        position = piece.start
        for line in lines:
            if line.strip():
                text = normalise(_decode(line, part, piece.path, position))
                if text.strip():
                    yield text
            position += len(line)


def _decode(line: bytes, part: Slice, path: Path, position: int) -> str:
    where = f"source {part.source}: {path}, byte {position}"
    try:
        text = line.decode("utf-8")
        if part.format == "text":
            return text
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {position + error.start}): convert the file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not a line of JSON ({error.msg}): correct or remove the line") from error
    if not isinstance(value, dict) or not isinstance(value.get(part.text_column), str):
        raise UserError(f"{where}: no text under {part.text_column!r}: set text_column to the key that holds it")
    return value[part.text_column]
