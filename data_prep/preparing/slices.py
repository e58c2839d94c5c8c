"""Slices of the input as independent units of work, for any worker in any order."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

from ...models.common.config import Record
from ...models.common.errors import UserError
from ..config import DatasetConfig, SourceConfig
from ..formats.megatron import megatron_pieces
from ..formats.records import Context, Fault, Format, Piece, UnreadableError
from ..formats.streams import HEAD_BYTES, compression_of
from ..formats.tables import table_errors, table_groups, table_pieces
from ..sources import SourceFiles
from ..sources.files import SkippedFiles

CHUNK = 2**20


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
    """A source with its files, cut into slices.

    Attributes:
        skipped: files and folders that its patterns leave out.
        faults: files that cannot be opened, as records that cannot be used.
    """

    config: SourceConfig
    kind: str
    licence: str
    origin: str
    files: tuple[InputFile, ...]
    slices: tuple[Slice, ...]
    skipped: tuple[SkippedFiles, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def name(self) -> str:
        """The name of the source in shards, manifest and mixture."""
        return self.config.label


class Plan(Record):
    """The plan of a preparation, completion file of its first stage: the config, and all sources, hashed and cut into slices."""

    config: DatasetConfig
    sources: tuple[SourcePlan, ...]
    evaluation: tuple[SourcePlan, ...]

    @property
    def files(self) -> dict[str, str]:
        """Hashes of all input files, by path."""
        return {str(file.path): file.sha256 for source in (*self.sources, *self.evaluation) for file in source.files}


def plan_source(config: SourceConfig, source_files: SourceFiles, unit_bytes: int) -> SourcePlan:
    """Cut a source into slices of about `unit_bytes`, and hash its files.

    Raises:
        UserError: the source holds nothing.
    """
    files: list[InputFile] = []
    pieces: list[tuple[Format, Piece, int]] = []
    faults = [_unreadable(config, path, reason) for path, reason in source_files.unreadable]
    for path, form in source_files.with_formats():
        if "://" in path:
            pieces.extend((form, piece, size) for piece, size in _table_pieces(path, form, 0, unit_bytes))
            continue
        try:
            file, cut = _cut_file(path, form, config, unit_bytes)
        except OSError as error:
            faults.append(_unreadable(config, path, error.strerror or str(error)))
            continue
        files.append(file)
        pieces.extend((form, piece, size) for piece, size in cut)
    slices = []
    for form, group in groupby(pieces, key=itemgetter(0)):
        # A row group of the hub is a unit, so that a limited source fetches no more than it needs.
        limit = 1 if source_files.is_hub else unit_bytes
        slices += [_slice(config, form, part) for part in _grouped([entry[1:] for entry in group], limit)]
    for shard in range(source_files.hub_shards):
        piece = Piece(path=source_files.origin.partition(" @ ")[0], start=shard, stop=shard + 1)
        slices.append(_slice(config, "hub", [(piece, 0)]))
    if not slices:
        reason = f"; {len(faults)} cannot be read, the first: {faults[0].place}: {faults[0].reason}" if faults else ""
        raise UserError(f"source {config.label} is empty: {len(files)} files without any text{reason}")
    return SourcePlan(
        config=config,
        kind=source_files.kind,
        licence=source_files.licence,
        origin=source_files.origin,
        files=tuple(files),
        slices=tuple(slices),
        skipped=source_files.skipped,
        faults=tuple(faults),
    )


def _unreadable(config: SourceConfig, path: str, reason: str) -> Fault:
    reason = f"cannot be read ({reason}): correct it, or leave it out with exclude"
    return Context(config, path, 0).fault(0, reason)


def _slice(config: SourceConfig, form: Format, group: list[tuple[Piece, int]]) -> Slice:
    pieces = tuple(piece for piece, _ in group)
    return Slice(source=config.label, format=form, pieces=pieces, bytes=sum(size for _, size in group))


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


def _cut_file(
    path: str, form: Format, config: SourceConfig, unit_bytes: int
) -> tuple[InputFile, list[tuple[Piece, int]]]:
    """Cut a file: its size and hash, and its pieces with the bytes of each."""
    separator = None
    with open(path, "rb") as file:
        head = file.read(4096)
        if compression_of(head[:HEAD_BYTES]) is None:
            separator = _cut_at(form, head, config)
        file.seek(0)
        segments = _segments(file, separator, unit_bytes) if separator else iter(lambda: file.read(CHUNK), b"")
        digest, borders, position, line = hashlib.sha256(), [(0, 1)], 0, 1
        for data in segments:
            digest.update(data)
            position += len(data)
            line += data.count(b"\n")
            if separator:
                borders.append((position, line))
    if not separator and position:
        borders.append((position, line))
    record = InputFile(path=Path(path), bytes=position, sha256=digest.hexdigest())
    if form in ("parquet", "arrow", "megatron") and position:
        return record, _table_pieces(path, form, position, unit_bytes)
    return record, [
        (Piece(path=path, start=a, stop=b, first_line=first), b - a) for (a, first), (b, _) in pairwise(borders)
    ]


def _cut_at(form: Format, head: bytes, config: SourceConfig) -> bytes | None:
    """The separator bytes at which a file may be cut between documents; None if it must stay whole."""
    if form == "jsonl" and not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return b"\n"
    return config.separator.encode() if form == "text" and config.separator else None


def _segments(file, separator: bytes, unit_bytes: int) -> Iterator[bytes]:
    """The contents of a file in parts of at least `unit_bytes`, each up to the next separator."""
    while data := file.read(unit_bytes):
        buffer, begin = bytearray(data), max(0, unit_bytes - len(separator))
        while (found := buffer.find(separator, begin)) < 0 and (more := file.read(CHUNK)):
            begin = max(0, len(buffer) - len(separator))
            buffer += more
        if found >= 0:
            end = found + len(separator)
            file.seek(end - len(buffer), 1)
            del buffer[end:]
        yield bytes(buffer)


def _table_pieces(path: str, form: Format, size: int, unit_bytes: int) -> list[tuple[Piece, int]]:
    """The pieces of a table; a damaged file is a single piece, and the reader reports the damage."""
    whole = [(Piece(path=path, start=0, stop=-1 if form == "parquet" else 1), size)]
    try:
        if form == "megatron":
            return megatron_pieces(path, unit_bytes)
        return table_pieces(path, table_groups(path, form), unit_bytes) if form in ("parquet", "arrow") else whole
    except (UnreadableError, *table_errors()):
        return whole
