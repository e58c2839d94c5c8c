"""The first pass over a slice: usable documents are written to a spool file, with arrays for the later selection."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...models.common.config import Record
from ...models.common.files import read_json, sha256_json, write_aside, write_json
from ..config import NearDuplicateConfig, SourceConfig
from ..formats.columns import MISSING, lookup, names_of
from ..formats.records import Fault, RawDocument
from ..formats.spool import write_spool
from .documents import document_hash, is_heldout, normalise
from .minhash import signatures
from .ngrams import word_runs
from .reading import read_records
from .slices import Slice

FOLDER = "work"
FORMAT = 2  # of the unit's files; units of another one are done again
RUNS_BATCH = 256  # documents hashed together
MOST_COLUMNS = 50  # noted of a source


class CleaningUnit(Record):
    """The work of cleaning one slice, as sent to a worker.

    Attributes:
        folder: the dataset's folder; on a cluster, on shared storage.
        index: number of the unit, part of its files' names.
        source: columns, filters and normalisation.
        revision: of a dataset of the hub.
        evaluation: whether the text is for the overlap check only, not to train on.
        run_words: words of a run in the overlap check; None without that check.
    """

    folder: Path
    index: int
    part: Slice
    source: SourceConfig
    revision: str | None
    evaluation: bool
    seed: int
    heldout_fraction: float
    max_document_bytes: int
    near_duplicates: NearDuplicateConfig | None
    run_words: int | None

    @property
    def key(self) -> str:
        """Identity of the result, independent of the folder."""
        return sha256_json({"format": FORMAT} | self.identity_dump(exclude={"folder"}))

    @property
    def stem(self) -> Path:
        """Path of the unit's files, without their suffixes."""
        return self.folder / FOLDER / f"clean-{self.index:05d}"


class CleanRecord(Record):
    """The record of a finished cleaning unit; its completion file.

    Attributes:
        records: number of records read, usable or not.
        filtered: records excluded by a filter, or without text; `filtered_by` counts them by reason.
        columns: of the first record.
        documents, bytes: in the spool, UTF-8.
        faults: records that could not be used.
    """

    index: int
    key: str
    records: int
    filtered: int
    filtered_by: dict[str, int]
    columns: tuple[str, ...]
    documents: int
    bytes: int
    faults: tuple[Fault, ...]


class CleanArrays(NamedTuple):
    """Arrays of a cleaned slice, by document: uint64 `hashes [n]`, int64 `lengths [n]` in bytes, bool `heldout [n]`; uint32
    MinHash `signatures [n, permutations]` (no columns if disabled); sorted uint64 `runs [m]` of the held-out and evaluation
    documents; their places in the input: int64 `lines [n]`, and `files [n]`, positions in the array of `names`."""

    hashes: np.ndarray
    lengths: np.ndarray
    heldout: np.ndarray
    signatures: np.ndarray
    runs: np.ndarray
    lines: np.ndarray
    files: np.ndarray
    names: np.ndarray


def clean_unit(unit: CleaningUnit) -> CleanRecord:
    """Clean a slice: write its spool, its arrays, then its completion record; deterministic."""
    tally = _Tally()
    hashes: list[int] = []
    lengths: list[int] = []
    lines: list[int] = []
    files: list[int] = []
    names: dict[str, int] = {}
    sketches: list[np.ndarray] = []
    overlap_documents: list[bytes] = []
    runs: list[np.ndarray] = []

    def documents() -> Iterator[bytes]:
        for document, record in _usable(unit, tally):
            value = document_hash(document)
            hashes.append(value)
            lengths.append(len(document))
            lines.append(record.line)
            files.append(names.setdefault(record.file, len(names)))
            if unit.near_duplicates:
                sketches.append(signatures([document], unit.near_duplicates))
            if unit.run_words and (unit.evaluation or is_heldout(value, unit.seed, unit.heldout_fraction)):
                overlap_documents.append(document)
                if len(overlap_documents) == RUNS_BATCH:
                    runs.append(word_runs(overlap_documents, unit.run_words, whole_if_shorter=True)[0])
                    overlap_documents.clear()
            yield document

    write_spool(unit.stem.with_suffix(".zst"), documents())
    if overlap_documents and unit.run_words:
        runs.append(word_runs(overlap_documents, unit.run_words, whole_if_shorter=True)[0])
    width = unit.near_duplicates.permutations if unit.near_duplicates else 0
    arrays = CleanArrays(
        hashes=np.array(hashes, dtype=np.uint64),
        lengths=np.array(lengths, dtype=np.int64),
        heldout=np.array([is_heldout(value, unit.seed, unit.heldout_fraction) for value in hashes], dtype=bool),
        signatures=np.concatenate([np.empty((0, width), dtype=np.uint32), *sketches]),
        runs=np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *runs])),
        lines=np.array(lines, dtype=np.int64),
        files=np.array(files, dtype=np.int64),
        names=np.array(list(names), dtype=str),
    )
    with write_aside(unit.stem.with_suffix(".npz")) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays._asdict())
    record = CleanRecord(
        index=unit.index,
        key=unit.key,
        records=tally.records,
        filtered=tally.filtered.total(),
        filtered_by=dict(sorted(tally.filtered.items())),
        columns=tally.columns,
        documents=len(hashes),
        bytes=sum(lengths),
        faults=tuple(tally.faults),
    )
    write_json(unit.stem.with_suffix(".json"), record.model_dump(mode="json"))
    return record


@dataclass
class _Tally:
    """Counts of a unit's records, and its faults."""

    records: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    columns: tuple[str, ...] = ()
    faults: list[Fault] = field(default_factory=list)


def _usable(unit: CleaningUnit, tally: _Tally) -> Iterator[tuple[bytes, RawDocument]]:
    """Yield normalised documents that pass the filters, with their records; count all others and collect faults."""
    for record in read_records(unit.part, unit.source, unit.revision, unit.max_document_bytes):
        tally.records += 1
        if isinstance(record, Fault):
            tally.faults.append(record)
            continue
        if not tally.columns:
            tally.columns = tuple(names_of(record.columns)[:MOST_COLUMNS])
        text = normalise(record.text, unit.source.normalisation)
        try:
            document = text.encode("utf-8")
        except UnicodeEncodeError as error:
            reason = f"half of a surrogate pair (character {error.start}): correct the escape"
            tally.faults.append(Fault(source=unit.part.source, file=record.file, line=record.line, reason=reason))
            continue
        reason = _why_filtered(record, text, unit.source)
        if reason is None:
            yield document, record
        else:
            tally.filtered[reason] += 1


def _why_filtered(record: RawDocument, text: str, source: SourceConfig) -> str | None:
    """The name of the filter that excludes a document, or None."""
    if not text.strip():
        return "without text"
    if len(text) < source.min_characters:
        return "min_characters"
    if source.max_characters is not None and len(text) > source.max_characters:
        return "max_characters"
    for name, values in source.keep.items():
        value = lookup(record.columns, name)
        if value is MISSING:
            return f"no column {name}"
        # Fields of CSV are strings, whatever they spell.
        if value not in values and not (isinstance(value, str) and value in map(str, values)):
            return f"keep.{name}"
    for name, least in source.at_least.items():
        value = lookup(record.columns, name)
        if value is MISSING:
            return f"no column {name}"
        number = _number(value)
        if number is None or not number >= least:
            return f"at_least.{name}"
    return None


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None


def finished_cleaning(unit: CleaningUnit) -> CleanRecord | None:
    """The unit's record if it was finished for the same input and its files exist; else None."""
    stem = unit.stem
    if not all(stem.with_suffix(suffix).is_file() for suffix in (".json", ".npz", ".zst")):
        return None
    values = read_json(stem.with_suffix(".json"))
    # The key first: records of an earlier version lack fields.
    return CleanRecord.model_validate(values) if values.get("key") == unit.key else None


def read_arrays(unit: CleaningUnit) -> CleanArrays:
    """The arrays of a finished unit."""
    with np.load(unit.stem.with_suffix(".npz")) as stored:
        return CleanArrays(**{name: stored[name] for name in CleanArrays._fields})
