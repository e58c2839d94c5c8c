"""Selection among the cleaned documents (limits, duplicates, samples), as pure functions of the first pass."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...models.common.errors import UserError
from ..config import DatasetConfig
from ..formats.spool import read_spool
from .cleaning import CleaningUnit, read_arrays
from .documents import draw
from .minhash import near_duplicates


@dataclass(frozen=True)
class Selection:
    """The documents of the training sources, in order, with the reasons for exclusion.

    Attributes:
        hashes, lengths, heldout: as in `CleanArrays`, concatenated over all units.
        units: int64 `[n]`, position in the list of units of each document's unit.
        positions: int64 `[n]`, its position there.
        limited, duplicate, near_duplicate: bool `[n]`, the reason why a document is excluded; at most one is true.
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
        """The mask of excluded documents."""
        return self.limited | self.duplicate | self.near_duplicate


def select(config: DatasetConfig, units: Sequence[CleaningUnit]) -> Selection:
    """Select the documents to use: first limits, then duplicates, of which the first in order is kept."""
    arrays = [read_arrays(unit) for unit in units]
    counts = np.array([len(part.hashes) for part in arrays], dtype=np.int64)
    hashes = np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in arrays)])
    owners = np.repeat(np.arange(len(units)), counts)
    starts = np.cumsum(counts) - counts
    labels = [unit.part.source for unit in units]
    limited = np.zeros(len(hashes), dtype=bool)
    for source in config.sources:
        if source.limit_documents:
            own = np.flatnonzero(np.isin(owners, [i for i, label in enumerate(labels) if label == source.label]))
            limited[own[source.limit_documents :]] = True
    duplicate = np.zeros(len(hashes), dtype=bool)
    if config.exact_duplicates == "drop":
        candidates = np.flatnonzero(~limited)
        _, first = np.unique(hashes[candidates], return_index=True)
        duplicate[candidates] = True
        duplicate[candidates[first]] = False
    near_duplicate = np.zeros(len(hashes), dtype=bool)
    if config.near_duplicates:
        candidates = np.flatnonzero(~limited & ~duplicate)
        sketches = np.concatenate([part.signatures for part in arrays])
        near_duplicate[candidates] = near_duplicates(sketches[candidates], config.near_duplicates)
    return Selection(
        hashes=hashes,
        lengths=np.concatenate([np.empty(0, np.int64), *(part.lengths for part in arrays)]),
        heldout=np.concatenate([np.empty(0, bool), *(part.heldout for part in arrays)]),
        units=owners,
        positions=np.arange(len(hashes)) - starts[owners],
        limited=limited,
        duplicate=duplicate,
        near_duplicate=near_duplicate,
    )


def tokenizer_sample(config: DatasetConfig, units: Sequence[CleaningUnit], selection: Selection) -> Iterator[str]:
    """Sample training documents for the tokenizer, `train_bytes` in expectation, each source in proportion."""
    usable = ~selection.dropped & ~selection.heldout
    share = config.tokenizer.train_bytes / max(int(selection.lengths[usable].sum()), 1)
    for i, unit in enumerate(units):
        own = np.flatnonzero(selection.units == i)
        sampled = [
            bool(usable[j]) and (share >= 1 or draw(int(selection.hashes[j]), config.seed, "tokenizer") < share)
            for j in own
        ]
        if any(sampled):
            documents = read_spool(unit.stem.with_suffix(".zst"), selection.lengths[own].tolist())
            yield from (
                document.decode("utf-8") for document, is_sampled in zip(documents, sampled, strict=True) if is_sampled
            )


def forbidden_runs(units: Sequence[CleaningUnit]) -> dict[str, np.ndarray]:
    """The runs of held-out and evaluation texts, sorted, with the index of each one's origin, and the origins' names."""
    names = ["heldout"]
    runs, origins = [np.empty(0, np.uint64)], [np.empty(0, np.uint16)]
    for unit in units:
        name = unit.part.source if unit.evaluation else "heldout"
        if name not in names:
            names.append(name)
        unit_runs = read_arrays(unit).runs
        runs.append(unit_runs)
        origins.append(np.full(len(unit_runs), names.index(name), dtype=np.uint16))
    # A run of several origins counts for the first of them.
    unique, first = np.unique(np.concatenate(runs), return_index=True)
    return {"runs": unique, "origins": np.concatenate(origins)[first], "names": np.array(names)}


def selected_documents(units: Sequence[CleaningUnit], selection: Selection) -> Counter[tuple[str, str]]:
    """The number of selected documents by source and split."""
    counts = Counter[tuple[str, str]]()
    for i, unit in enumerate(units):
        own = (selection.units == i) & ~selection.dropped
        counts[unit.part.source, "heldout"] += int((own & selection.heldout).sum())
        counts[unit.part.source, "train"] += int((own & ~selection.heldout).sum())
    return counts


def check_splits(
    config: DatasetConfig, folder: Path, names: Sequence[str], documents: Counter[tuple[str, str]]
) -> None:
    """Refuse a dataset with a source that has nothing to train on, or with nothing held out.

    Args:
        names: of the sources.
        documents: their numbers of documents by source and split.

    Raises:
        UserError: names the source, or the fraction to raise.
    """
    for name in names:
        if not documents[name, "train"]:
            raise UserError(
                f"source {name} is empty: none of its documents is left to train on (the others are held out, "
                "or repeat other sources)"
            )
    if config.heldout_fraction and not any(documents[name, "heldout"] for name in names):
        raise UserError(
            f"no document of {documents.total()} fell into the held-out {config.heldout_fraction:.2%}: raise "
            f"heldout_fraction, or add documents, and delete {folder}"
        )
