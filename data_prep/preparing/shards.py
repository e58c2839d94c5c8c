"""The second pass over a slice: tokenize its documents into shards, with a completion record."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from ...models.common.config import Record
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file, sha256_json, write_aside, write_json
from ..formats.records import Fault
from ..formats.spool import read_spool
from .cleaning import CleanArrays, CleaningUnit, read_arrays
from .encoding import DocumentEncoder
from .manifest import ShardRecord, Split, TokenDtype, token_dtype
from .ngrams import RunIndex, split_words, word_runs
from .tokenizer import FILE_NAME, load_tokenizer

BATCH = 64  # documents checked for overlaps together
SAMPLED = 128  # one document in so many is decoded, to see what the tokenizer loses
FORGED = (
    "spells a special token that the tokenizer cannot read as plain text: change the text, or take another tokenizer"
)
RUNS_FILE = "work/runs.npz"


class TokenizingUnit(Record):
    """The work of tokenizing one cleaned slice, as sent to a worker.

    Attributes:
        cleaned: the unit of the first pass, whose files hold the documents.
        drop: positions in the slice of excluded documents: duplicates, and those beyond a limit.
        tokenizer_sha256: of the `tokenizer.json` in the folder.
        dtype: of the token ids.
        runs_sha256: of the file of forbidden runs; None without the overlap check.
        drop_overlaps: whether documents with forbidden runs are excluded.
        limit_tokens: stop after the document that reaches it.
    """

    cleaned: CleaningUnit
    drop: tuple[int, ...]
    tokenizer_sha256: str
    dtype: TokenDtype
    shard_tokens: int
    runs_sha256: str | None
    drop_overlaps: bool
    limit_tokens: int | None = None

    @property
    def folder(self) -> Path:
        """The dataset's folder."""
        return self.cleaned.folder

    @property
    def index(self) -> int:
        """Number of the unit, part of its files' names."""
        return self.cleaned.index

    @property
    def key(self) -> str:
        """Identity of the result, independent of the folder."""
        return sha256_json({**self.identity_dump(exclude={"cleaned"}), "cleaned": self.cleaned.key})

    @property
    def record_path(self) -> Path:
        """The unit's completion file."""
        return self.folder / "work" / f"tokens-{self.index:05d}.json"


class Overlap(Record):
    """A training document that shares a run of words with the held-out split or an evaluation set.

    Attributes:
        against: "heldout", or the name of the evaluation source.
        runs: the number of shared runs.
        words: the first of them, as words of the document.
    """

    source: str
    unit: int
    document: int
    against: str
    runs: int
    words: str


class UnitRecord(Record):
    """The record of a finished tokenizing unit; its completion file.

    Attributes:
        faults: documents that spell a special token which the tokenizer cannot read as text.
        unknown: tokens that stand for text which the tokenizer does not know.
        sampled_characters, lost_characters: of the documents that were decoded again, and how many of them were not there.
    """

    index: int
    key: str
    shards: tuple[ShardRecord, ...]
    overlaps: tuple[Overlap, ...]
    faults: tuple[Fault, ...] = ()
    unknown: int = 0
    sampled_characters: int = 0
    lost_characters: int = 0

    @property
    def tokens(self) -> int:
        """The number of tokens in all its shards."""
        return sum(shard.tokens for shard in self.shards)


def tokenize_unit(unit: TokenizingUnit) -> UnitRecord:
    """Tokenize a slice: write its shards, then its completion record; deterministic.

    Raises:
        UserError: no space left, or another tokenizer lies in the folder.
    """
    encoder = _encoder(unit.folder, unit.tokenizer_sha256, unit.dtype)
    tally = _Tally()
    shards = tuple(_write_shards(unit, encoder, tally))
    record = UnitRecord(
        index=unit.index,
        key=unit.key,
        shards=shards,
        overlaps=tuple(tally.overlaps),
        faults=tuple(tally.faults),
        unknown=tally.unknown,
        sampled_characters=tally.sampled_characters,
        lost_characters=tally.lost_characters,
    )
    write_json(unit.record_path, record.model_dump(mode="json"))
    return record


def finished_record(unit: TokenizingUnit) -> UnitRecord | None:
    """The unit's record if it was finished for the same input and its files exist; else None."""
    if not unit.record_path.is_file():
        return None
    record = UnitRecord.model_validate(read_json(unit.record_path))
    itemsize = token_dtype(unit.dtype).itemsize
    for shard in record.shards:
        path, documents = unit.folder / shard.file, unit.folder / shard.documents_file
        if not documents.is_file() or not path.is_file() or path.stat().st_size != shard.tokens * itemsize:
            return None
    return record if record.key == unit.key else None


# One entry each: a worker tokenizes many units of one dataset.
@lru_cache(maxsize=1)
def _encoder(folder: Path, sha256: str, dtype: TokenDtype) -> DocumentEncoder:
    if sha256_file(folder / FILE_NAME) != sha256:
        raise UserError(f"{folder / FILE_NAME} changed while the dataset was prepared: delete the folder")
    return DocumentEncoder(load_tokenizer(folder), token_dtype(dtype))


@lru_cache(maxsize=1)
def _run_index(folder: Path, sha256: str) -> tuple[RunIndex, np.ndarray, list[str]]:
    """The index of forbidden runs, the origin of each run, and the origins' names."""
    with np.load(folder / RUNS_FILE) as stored:
        return RunIndex(stored["runs"]), stored["origins"], [str(name) for name in stored["names"]]


@dataclass
class _Tally:
    """Counts and faults collected while a unit is tokenized; see `UnitRecord`."""

    overlaps: list[Overlap] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    unknown: int = 0
    sampled_characters: int = 0
    lost_characters: int = 0


def _write_shards(unit: TokenizingUnit, encoder: DocumentEncoder, tally: _Tally) -> Iterator[ShardRecord]:
    open_shards: dict[Split, _Shard] = {"train": _Shard(unit, "train", 0), "heldout": _Shard(unit, "heldout", 0)}
    arrays = read_arrays(unit.cleaned)
    total = 0
    for number, document, is_overlapping in _used_documents(unit, arrays, tally.overlaps):
        if is_overlapping and unit.drop_overlaps:
            continue
        text = document.decode("utf-8")
        tokens = encoder.encode(text)
        if tokens is None:
            place = {"file": str(arrays.names[arrays.files[number]]), "line": int(arrays.lines[number])}
            tally.faults.append(Fault(source=unit.cleaned.part.source, reason=FORGED, **place))
            continue
        if encoder.unknown is not None:
            tally.unknown += int((tokens == encoder.unknown).sum())
        if number % SAMPLED == 0:
            tally.sampled_characters += len(text)
            tally.lost_characters += encoder.lost_characters(text, tokens)
        split: Split = "heldout" if arrays.heldout[number] else "train"
        shard = open_shards[split]
        shard.add(tokens, len(document))
        total += len(tokens)
        if shard.tokens >= unit.shard_tokens:
            yield shard.write()
            open_shards[split] = _Shard(unit, split, shard.part + 1)
        if unit.limit_tokens is not None and total >= unit.limit_tokens:
            break
    for shard in open_shards.values():
        if shard.tokens:
            yield shard.write()


def _used_documents(
    unit: TokenizingUnit, arrays: CleanArrays, overlaps: list[Overlap]
) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number, text and overlap of the documents that were selected; collects the overlaps of training documents."""
    lengths, heldout = arrays.lengths.tolist(), arrays.heldout.tolist()
    dropped = set(unit.drop)
    numbered = enumerate(read_spool(unit.cleaned.stem.with_suffix(".zst"), lengths))
    used = ((number, document) for number, document in numbered if number not in dropped)
    while batch := list(islice(used, BATCH)):
        overlapping: set[int] = set()
        if unit.runs_sha256:
            train = [(number, document) for number, document in batch if not heldout[number]]
            batch_overlaps = _find_overlaps(unit, unit.runs_sha256, train)
            overlaps.extend(batch_overlaps)
            overlapping = {overlap.document for overlap in batch_overlaps}
        for number, document in batch:
            yield number, document, number in overlapping


def _find_overlaps(unit: TokenizingUnit, sha256: str, documents: Sequence[tuple[int, bytes]]) -> list[Overlap]:
    assert unit.cleaned.run_words
    index, origins, names = _run_index(unit.folder, sha256)
    runs, owners = word_runs([document for _, document in documents], unit.cleaned.run_words, whole_if_shorter=True)
    positions, places = index.find(runs)
    overlaps = []
    for owner in np.unique(owners[positions]):
        hits = np.flatnonzero(owners[positions] == owner)
        first_run = int(positions[hits[0]] - np.searchsorted(owners, owner))
        number, document = documents[owner]
        for origin in np.unique(origins[places[hits]]):
            overlaps.append(
                Overlap(
                    source=unit.cleaned.part.source,
                    unit=unit.index,
                    document=number,
                    against=names[origin],
                    runs=int((origins[places[hits]] == origin).sum()),
                    words=_words_from(document, first_run, unit.cleaned.run_words),
                )
            )
    return overlaps


def _words_from(document: bytes, first: int, count: int) -> str:
    return b" ".join(split_words(document)[first : first + count]).decode("utf-8", errors="replace")


class _Shard:
    """The documents of one shard, collected in memory until it is written."""

    def __init__(self, unit: TokenizingUnit, split: Split, part: int) -> None:
        self.unit = unit
        self.split: Split = split
        self.part = part
        self.documents: list[np.ndarray] = []
        self.tokens = self.text_bytes = 0

    def add(self, tokens: np.ndarray, text_bytes: int) -> None:
        self.documents.append(tokens)
        self.tokens += len(tokens)
        self.text_bytes += text_bytes

    def write(self) -> ShardRecord:
        stem = f"{self.split}-{self.unit.index:05d}-{self.part:03d}"
        offsets = np.zeros(len(self.documents) + 1, dtype="<i8")
        np.cumsum([len(document) for document in self.documents], out=offsets[1:])
        buffer = io.BytesIO()
        np.save(buffer, offsets)
        return ShardRecord(
            file=f"{stem}.bin",
            source=self.unit.cleaned.part.source,
            split=self.split,
            tokens=self.tokens,
            documents=len(self.documents),
            text_bytes=self.text_bytes,
            documents_sha256=_write_bytes(self.unit.folder / f"{stem}.docs.npy", buffer.getvalue()),
            sha256=_write_bytes(self.unit.folder / f"{stem}.bin", np.concatenate(self.documents).tobytes()),
        )


def _write_bytes(path: Path, data: bytes) -> str:
    with write_aside(path) as aside:
        aside.write_bytes(data)
        return sha256_file(aside)
