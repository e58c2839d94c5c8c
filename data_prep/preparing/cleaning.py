"""The first pass over a slice: usable documents are written to a spool file, with arrays for the later selection."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...models.common.config import Record
from ...models.common.files import read_json, sha256_json, write_aside, write_json
from ..config import NearDuplicateConfig, SourceConfig
from .documents import document_hash, is_heldout, normalise
from .minhash import signatures
from .ngrams import word_runs
from .reading import Fault, RawDocument, read_records
from .slices import Slice
from .spool import write_spool

FOLDER = "work"
RUNS_BATCH = 256  # documents hashed together


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
        return sha256_json(self.identity_dump(exclude={"folder"}))

    @property
    def stem(self) -> Path:
        """Path of the unit's files, without their suffixes."""
        return self.folder / FOLDER / f"clean-{self.index:05d}"


class CleanRecord(Record):
    """The record of a finished cleaning unit; its completion file.

    Attributes:
        records: number of records read, usable or not.
        filtered: records excluded by a filter, or without text.
        documents, bytes: in the spool, UTF-8.
        faults: records that could not be used.
    """

    index: int
    key: str
    records: int
    filtered: int
    documents: int
    bytes: int
    faults: tuple[Fault, ...]


class CleanArrays(NamedTuple):
    """Arrays of a cleaned slice, by document: uint64 `hashes [n]`, int64 `lengths [n]` in bytes, bool `heldout [n]`; uint32
    MinHash `signatures [n, permutations]` (no columns if disabled); sorted uint64 `runs [m]` of the held-out and evaluation
    documents."""

    hashes: np.ndarray
    lengths: np.ndarray
    heldout: np.ndarray
    signatures: np.ndarray
    runs: np.ndarray


def clean_unit(unit: CleaningUnit) -> CleanRecord:
    """Clean a slice: write its spool, its arrays, then its completion record; deterministic."""
    faults: list[Fault] = []
    counts = {"records": 0, "filtered": 0}
    hashes: list[int] = []
    lengths: list[int] = []
    sketches: list[np.ndarray] = []
    overlap_documents: list[bytes] = []
    runs: list[np.ndarray] = []

    def documents() -> Iterator[bytes]:
        for document in _usable(unit, faults, counts):
            value = document_hash(document)
            hashes.append(value)
            lengths.append(len(document))
            if unit.near_duplicates:
                sketches.append(signatures([document], unit.near_duplicates))
            if unit.run_words and (unit.evaluation or is_heldout(value, unit.seed, unit.heldout_fraction)):
                overlap_documents.append(document)
                if len(overlap_documents) == RUNS_BATCH:
                    runs.append(word_runs(overlap_documents, unit.run_words)[0])
                    overlap_documents.clear()
            yield document

    write_spool(unit.stem.with_suffix(".zst"), documents())
    if overlap_documents and unit.run_words:
        runs.append(word_runs(overlap_documents, unit.run_words)[0])
    width = unit.near_duplicates.permutations if unit.near_duplicates else 0
    arrays = CleanArrays(
        hashes=np.array(hashes, dtype=np.uint64),
        lengths=np.array(lengths, dtype=np.int64),
        heldout=np.array([is_heldout(value, unit.seed, unit.heldout_fraction) for value in hashes], dtype=bool),
        signatures=np.concatenate([np.empty((0, width), dtype=np.uint32), *sketches]),
        runs=np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *runs])),
    )
    with write_aside(unit.stem.with_suffix(".npz")) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays._asdict())
    record = CleanRecord(
        index=unit.index, key=unit.key, documents=len(hashes), bytes=sum(lengths), faults=tuple(faults), **counts
    )
    write_json(unit.stem.with_suffix(".json"), record.model_dump(mode="json"))
    return record


def _usable(unit: CleaningUnit, faults: list[Fault], counts: dict[str, int]) -> Iterator[bytes]:
    """Yield normalised documents that pass the filters; count the others and collect faults."""
    for record in read_records(unit.part, unit.source, unit.revision, unit.max_document_bytes):
        counts["records"] += 1
        if isinstance(record, Fault):
            faults.append(record)
            continue
        text = normalise(record.text, unit.source.normalisation)
        try:
            document = text.encode("utf-8")
        except UnicodeEncodeError as error:
            reason = f"half of a surrogate pair (character {error.start}): correct the escape"
            faults.append(Fault(source=unit.part.source, file=record.file, line=record.line, reason=reason))
            continue
        if _passes(record, text, unit.source):
            yield document
        else:
            counts["filtered"] += 1


def _passes(record: RawDocument, text: str, source: SourceConfig) -> bool:
    if not text.strip() or len(text) < source.min_characters:
        return False
    if source.max_characters is not None and len(text) > source.max_characters:
        return False
    if any(record.columns.get(name) not in values for name, values in source.keep.items()):
        return False
    for name, least in source.at_least.items():
        value = record.columns.get(name)
        if not isinstance(value, int | float) or not value >= least:
            return False
    return True


def finished_cleaning(unit: CleaningUnit) -> CleanRecord | None:
    """The unit's record if it was finished for the same input and its files exist; else None."""
    stem = unit.stem
    if not all(stem.with_suffix(suffix).is_file() for suffix in (".json", ".npz", ".zst")):
        return None
    record = CleanRecord.model_validate(read_json(stem.with_suffix(".json")))
    return record if record.key == unit.key else None


def read_arrays(unit: CleaningUnit) -> CleanArrays:
    """The arrays of a finished unit."""
    with np.load(unit.stem.with_suffix(".npz")) as stored:
        return CleanArrays(**{name: stored[name] for name in CleanArrays._fields})
