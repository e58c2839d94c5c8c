"""The second pass over a slice: tokenize its documents into shards, with a completion record."""

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ...models.common.config import Record
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file, sha256_json, write_aside, write_json
from .cleaning import CleaningUnit, read_arrays
from .manifest import ShardRecord, Split, TokenDtype, token_dtype
from .ngrams import RunIndex, split_words, word_runs
from .spool import read_spool
from .tokenizer import FILE_NAME, end_of_text, load_tokenizer

BATCH = 64  # documents checked for overlaps together
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
    """The record of a finished tokenizing unit; its completion file."""

    index: int
    key: str
    shards: tuple[ShardRecord, ...]
    overlaps: tuple[Overlap, ...]

    @property
    def tokens(self) -> int:
        """The number of tokens in all its shards."""
        return sum(shard.tokens for shard in self.shards)


def tokenize_unit(unit: TokenizingUnit) -> UnitRecord:
    """Tokenize a slice: write its shards, then its completion record; deterministic.

    Raises:
        UserError: no space left, or another tokenizer lies in the folder.
    """
    tokenizer = _tokenizer(unit.folder, unit.tokenizer_sha256)
    overlaps: list[Overlap] = []
    shards = tuple(_write_shards(unit, tokenizer, overlaps))
    record = UnitRecord(index=unit.index, key=unit.key, shards=shards, overlaps=tuple(overlaps))
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
def _tokenizer(folder: Path, sha256: str) -> Tokenizer:
    if sha256_file(folder / FILE_NAME) != sha256:
        raise UserError(f"{folder / FILE_NAME} changed while the dataset was prepared: delete the folder")
    return load_tokenizer(folder)


@lru_cache(maxsize=1)
def _run_index(folder: Path, sha256: str) -> tuple[RunIndex, np.ndarray, list[str]]:
    """The index of forbidden runs, the origin of each run, and the origins' names."""
    with np.load(folder / RUNS_FILE) as stored:
        return RunIndex(stored["runs"]), stored["origins"], [str(name) for name in stored["names"]]


def _write_shards(unit: TokenizingUnit, tokenizer: Tokenizer, overlaps: list[Overlap]) -> Iterator[ShardRecord]:
    separator = end_of_text(tokenizer)
    open_shards: dict[Split, _Shard] = {"train": _Shard(unit, "train", 0), "heldout": _Shard(unit, "heldout", 0)}
    total = 0
    for document, heldout in _used_documents(unit, overlaps):
        split: Split = "heldout" if heldout else "train"
        shard = open_shards[split]
        # The fast call omits offsets, which are not needed. One document per call: more are no faster on one core.
        (encoded,) = tokenizer.encode_batch_fast([document.decode("utf-8")], add_special_tokens=False)
        ids = encoded.ids  # a new list
        ids.append(separator)
        shard.add(ids, len(document))
        total += len(ids)
        if shard.tokens >= unit.shard_tokens:
            yield shard.write()
            open_shards[split] = _Shard(unit, split, shard.part + 1)
        if unit.limit_tokens is not None and total >= unit.limit_tokens:
            break
    for shard in open_shards.values():
        if shard.tokens:
            yield shard.write()


def _used_documents(unit: TokenizingUnit, overlaps: list[Overlap]) -> Iterator[tuple[bytes, bool]]:
    """Yield the documents to tokenize, and whether each is held out; collects the overlaps of training documents."""
    arrays = read_arrays(unit.cleaned)
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
            if not (unit.drop_overlaps and number in overlapping):
                yield document, heldout[number]


def _find_overlaps(unit: TokenizingUnit, sha256: str, documents: Sequence[tuple[int, bytes]]) -> list[Overlap]:
    assert unit.cleaned.run_words
    index, origins, names = _run_index(unit.folder, sha256)
    runs, owners = word_runs([document for _, document in documents], unit.cleaned.run_words)
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
        self.dtype = token_dtype(unit.dtype)
        self.documents: list[np.ndarray] = []
        self.tokens = self.text_bytes = 0

    def add(self, ids: list[int], text_bytes: int) -> None:
        self.documents.append(np.array(ids, dtype=self.dtype))
        self.tokens += len(ids)
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
