"""What becomes of the cleaned documents: pure functions of the finished first pass, the same whoever did it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...models.common.errors import UserError
from ..config import DatasetConfig, SourceConfig
from .cleaning import CleaningUnit, CleanRecord, read_arrays
from .documents import draw
from .minhash import near_duplicates
from .reading import Fault
from .spool import read_spool


@dataclass(frozen=True)
class Selection:
    """Documents of the sources to train on, in order.

    Attributes:
        hashes, lengths, heldout: as in `CleanArrays`, of all units one after the other.
        units: int64 `[n]`, position in the list of units of each document's unit.
        positions: int64 `[n]`, its position there.
        limited, duplicate, near_duplicate: bool `[n]`, why a document is left out; at most one of them holds.
    """

    hashes: np.ndarray
    lengths: np.ndarray
    heldout: np.ndarray
    units: np.ndarray
    positions: np.ndarray
    limited: np.ndarray
    duplicate: np.ndarray
    near_duplicate: np.ndarray

    @property
    def dropped(self) -> np.ndarray:
        """Documents that are left out."""
        return self.limited | self.duplicate | self.near_duplicate


def select(config: DatasetConfig, units: Sequence[CleaningUnit]) -> Selection:
    """Decide which documents are used: limits first, then duplicates, the first in order stays."""
    arrays = [read_arrays(unit) for unit in units]
    counts = np.array([len(part.hashes) for part in arrays], dtype=np.int64)
    hashes = np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in arrays)])
    owners = np.repeat(np.arange(len(units)), counts)
    starts = np.cumsum(counts) - counts
    labels = [unit.part.source for unit in units]
    limited = np.zeros(len(hashes), dtype=bool)
    for source in config.sources:
        if source.limit_documents:
            mine = np.flatnonzero(np.isin(owners, [i for i, label in enumerate(labels) if label == source.label]))
            limited[mine[source.limit_documents :]] = True
    duplicate = np.zeros(len(hashes), dtype=bool)
    if config.exact_duplicates == "drop":
        candidates = np.flatnonzero(~limited)
        _, first = np.unique(hashes[candidates], return_index=True)
        duplicate[candidates] = True
        duplicate[candidates[first]] = False
    near = np.zeros(len(hashes), dtype=bool)
    if config.near_duplicates:
        candidates = np.flatnonzero(~limited & ~duplicate)
        sketches = np.concatenate([part.signatures for part in arrays])
        near[candidates] = near_duplicates(sketches[candidates], config.near_duplicates)
    return Selection(
        hashes=hashes,
        lengths=np.concatenate([np.empty(0, np.int64), *(part.lengths for part in arrays)]),
        heldout=np.concatenate([np.empty(0, bool), *(part.heldout for part in arrays)]),
        units=owners,
        positions=np.arange(len(hashes)) - starts[owners],
        limited=limited,
        duplicate=duplicate,
        near_duplicate=near,
    )


def tokenizer_sample(config: DatasetConfig, units: Sequence[CleaningUnit], selection: Selection) -> Iterator[str]:
    """Training documents, `train_bytes` in expectation, each source in its proportion."""
    usable = ~selection.dropped & ~selection.heldout
    share = config.tokenizer.train_bytes / max(int(selection.lengths[usable].sum()), 1)
    for i, unit in enumerate(units):
        mine = np.flatnonzero(selection.units == i)
        wanted = [
            bool(usable[j]) and (share >= 1 or draw(int(selection.hashes[j]), config.seed, "tokenizer") < share)
            for j in mine
        ]
        if any(wanted):
            documents = read_spool(unit.stem.with_suffix(".zst"), selection.lengths[mine].tolist())
            yield from (document.decode("utf-8") for document, w in zip(documents, wanted, strict=True) if w)


def forbidden_runs(units: Sequence[CleaningUnit]) -> dict[str, np.ndarray]:
    """Runs of words that training must not share, sorted, with a number for where each is from, and their names."""
    names = ["heldout"]
    runs, origins = [np.empty(0, np.uint64)], [np.empty(0, np.uint16)]
    for unit in units:
        name = unit.part.source if unit.evaluation else "heldout"
        if name not in names:
            names.append(name)
        found = read_arrays(unit).runs
        runs.append(found)
        origins.append(np.full(len(found), names.index(name), dtype=np.uint16))
    # A run that several texts hold counts for the first of them.
    unique, first = np.unique(np.concatenate(runs), return_index=True)
    return {"runs": unique, "origins": np.concatenate(origins)[first], "names": np.array(names)}


def check_faults(
    config: DatasetConfig, source: SourceConfig, records: Sequence[CleanRecord], file_bytes: int, report: Path
) -> None:
    """Refuse a source too much of which cannot be used.

    Args:
        config: with the share that may be bad.
        source: which one.
        records: of its units.
        file_bytes: of all its files.
        report: where all faults are listed.

    Raises:
        UserError: with the first fault.
    """
    faults: list[Fault] = [fault for record in records for fault in record.faults]
    if not faults:
        return
    total = sum(record.records for record in records)
    lost = {fault.file: fault.lost_bytes for fault in faults if fault.lost_bytes}
    share = max(len(faults) / total, sum(lost.values()) / file_bytes if file_bytes else 0.0)
    if share > config.max_bad_share:
        files = f" and {sum(lost.values()):,} of {file_bytes:,} bytes in whole files" if lost else ""
        raise UserError(
            f"source {source.label}: {len(faults)} of {total} records{files} cannot be used, more than "
            f"max_bad_share={config.max_bad_share:g}; the first: {faults[0].file}, line {faults[0].line}: "
            f"{faults[0].reason}; all: {report}"
        )
