"""Slices of the input as independent units of work, for any worker in any order."""

import hashlib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from ...models.common.config import Record
from ...models.common.errors import UserError
from ..config import SourceConfig
from ..sources import Format, SourceFiles

COMPRESSED = (".gz", ".zst")


class Piece(Record):
    """A part of a file, cut between documents.

    Attributes:
        path: the file; the dataset's name for a shard of the hub.
        start, stop: bytes; row groups of parquet, shards of the hub. A compressed file is whole: 0 and its bytes.
        first_line: number of the first line in the file, from 1.
    """

    path: Path
    start: int
    stop: int
    first_line: int = 1


class Slice(Record):
    """The input of one unit of work: pieces of one source, in order, about `bytes` in all (0 where unknown)."""

    source: str
    format: Format
    pieces: tuple[Piece, ...]
    bytes: int


class InputFile(Record):
    """A file of a source, with its size and hash when the plan was made."""

    path: Path
    bytes: int
    sha256: str


class SourcePlan(Record):
    """A source with its files, cut into slices."""

    config: SourceConfig
    kind: str
    licence: str
    origin: str
    files: tuple[InputFile, ...]
    slices: tuple[Slice, ...]

    @property
    def name(self) -> str:
        """The name of the source in shards, manifest and mixture."""
        return self.config.label


def plan_source(config: SourceConfig, source_files: SourceFiles, unit_bytes: int) -> SourcePlan:
    """Cut a source into slices of about `unit_bytes`, and hash its files.

    Raises:
        UserError: the source holds nothing, or a file cannot be read.
    """
    files: list[InputFile] = []
    pieces: list[tuple[Piece, int]] = []
    for path in source_files.files:
        try:
            file, cut = _cut_file(path.resolve(), source_files.format, unit_bytes)
        except OSError as error:
            raise UserError(f"source {config.label}: {path} cannot be read ({error.strerror})") from error
        files.append(file)
        pieces.extend(cut)
    slices = [_slice(config, source_files, group) for group in _grouped(pieces, unit_bytes)]
    for shard in range(source_files.hub_shards):
        piece = Piece(path=Path(source_files.origin.partition(" @ ")[0]), start=shard, stop=shard + 1)
        slices.append(_slice(config, source_files, [(piece, 0)]))
    if not slices:
        raise UserError(f"source {config.label} is empty: {len(source_files.files)} files without any text")
    return SourcePlan(
        config=config,
        kind=source_files.kind,
        licence=source_files.licence,
        origin=source_files.origin,
        files=tuple(files),
        slices=tuple(slices),
    )


def _slice(config: SourceConfig, source_files: SourceFiles, group: list[tuple[Piece, int]]) -> Slice:
    pieces = tuple(piece for piece, _ in group)
    return Slice(source=config.label, format=source_files.format, pieces=pieces, bytes=sum(size for _, size in group))


def _grouped(pieces: Iterable[tuple[Piece, int]], unit_bytes: int) -> list[list[tuple[Piece, int]]]:
    """Group small pieces until they have `unit_bytes`."""
    groups: list[list[tuple[Piece, int]]] = []
    filled = unit_bytes
    for piece, size in pieces:
        if filled >= unit_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((piece, size))
        filled += size
    return groups


def _cut_file(path: Path, form: Format, unit_bytes: int) -> tuple[InputFile, list[tuple[Piece, int]]]:
    """Cut a file: its size and hash, and its pieces with the bytes of each."""
    digest = hashlib.sha256()
    cut_lines = form == "jsonl" and path.suffix not in COMPRESSED
    borders, lines = [(0, 1)], 0
    position = 0
    with open(path, "rb") as file:
        if cut_lines:
            for line in file:
                digest.update(line)
                position += len(line)
                lines += 1
                if position - borders[-1][0] >= unit_bytes:
                    borders.append((position, lines + 1))
        else:
            while data := file.read(2**20):
                digest.update(data)
                position += len(data)
    if borders[-1][0] < position:
        borders.append((position, lines + 1))
    record = InputFile(path=path, bytes=position, sha256=digest.hexdigest())
    if form == "parquet" and position:
        return record, _row_groups(path, position)
    return record, [
        (Piece(path=path, start=a, stop=b, first_line=line), b - a) for (a, line), (b, _) in pairwise(borders)
    ]


def _row_groups(path: Path, size: int) -> list[tuple[Piece, int]]:
    """A piece for every row group; a single one for a broken file, which the reader then reports."""
    parquet = import_parquet()
    from pyarrow import ArrowException

    try:
        metadata = parquet.read_metadata(path)
    except (ArrowException, OSError):
        return [(Piece(path=path, start=0, stop=-1), size)]
    pieces, first = [], 1
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        pieces.append((Piece(path=path, start=i, stop=i + 1, first_line=first), group.total_byte_size))
        first += group.num_rows
    return pieces


def import_parquet():
    """Import `pyarrow.parquet`, which only parquet sources need.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError('a parquet source needs the package pyarrow: pip install "echo-lm[cluster]"') from error
    return pyarrow.parquet
