"""The manifest and the overlap report of a finished dataset."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...models.common.errors import UserError
from ...models.common.files import sha256_file, sha256_json
from ..config import DatasetConfig
from .cleaning import CleaningUnit, CleanRecord
from .manifest import QUARANTINE_FILE, Manifest, OverlapRecord, SourceRecord, TokenDtype, config_sha256
from .selection import Selection
from .shards import Overlap, UnitRecord
from .slices import SourcePlan
from .tokenizer import FILE_NAME as TOKENIZER_FILE
from .tokenizer import load_tokenizer

EXAMPLES = 20


def token_dtype_for(vocab_size: int) -> TokenDtype:
    """The smallest dtype that holds every token id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def make_manifest(
    config: DatasetConfig,
    folder: Path,
    plans: Sequence[SourcePlan],
    units: Sequence[CleaningUnit],
    cleaned: Sequence[CleanRecord],
    selection: Selection,
    records: Sequence[UnitRecord],
) -> Manifest:
    """Make the manifest of a dataset whose shards are all written.

    Raises:
        UserError: a source has nothing to train on, or nothing was held out.
    """
    shards = tuple(shard for record in records for shard in record.shards)
    for source in plans:
        if not any(shard.source == source.name and shard.split == "train" for shard in shards):
            raise UserError(
                f"source {source.name} is empty: none of its documents is left to train on (the others are held out, "
                "or repeat other sources)"
            )
    if config.heldout_fraction and not any(shard.split == "heldout" for shard in shards):
        raise UserError(
            f"no document of {sum(shard.documents for shard in shards)} fell into the held-out "
            f"{config.heldout_fraction:.2%}: raise heldout_fraction, or add documents, and delete {folder}"
        )
    overlaps = [overlap for record in records for overlap in record.overlaps]
    vocab_size = load_tokenizer(folder).get_vocab_size()
    quarantine = folder / QUARANTINE_FILE
    by_index = {record.index: record for record in cleaned}
    return Manifest(
        config=config,
        config_sha256=config_sha256(config),
        tokenizer_sha256=sha256_file(folder / TOKENIZER_FILE),
        vocab_size=vocab_size,
        dtype=token_dtype_for(vocab_size),
        sources=tuple(
            _source_record(source, units, by_index, selection, records, overlaps, config) for source in plans
        ),
        overlaps=_overlap_records(overlaps),
        quarantine_sha256=sha256_file(quarantine) if quarantine.is_file() else None,
        shards=shards,
    )


def _source_record(
    source: SourcePlan,
    units: Sequence[CleaningUnit],
    cleaned: dict[int, CleanRecord],
    selection: Selection,
    records: Sequence[UnitRecord],
    overlaps: Sequence[Overlap],
    config: DatasetConfig,
) -> SourceRecord:
    own = [i for i, unit in enumerate(units) if unit.part.source == source.name]
    clean_records = [cleaned[units[i].index] for i in own]
    is_own = np.isin(selection.units, own)
    shards = [shard for record in records for shard in record.shards if shard.source == source.name]
    overlapping = {(o.unit, o.document) for o in overlaps if o.source == source.name}
    dropping = config.overlap is not None and config.overlap.action == "drop"
    return SourceRecord(
        name=source.name,
        kind=source.kind,
        licence=source.licence,
        origin=source.origin,
        input_files=len(source.files),
        input_sha256=sha256_json([file.sha256 for file in source.files] or source.origin),
        records=sum(record.records for record in clean_records),
        quarantined=sum(len(record.faults) for record in clean_records),
        filtered=sum(record.filtered for record in clean_records),
        duplicates=int((selection.duplicate & is_own).sum()),
        near_duplicates=int((selection.near_duplicate & is_own).sum()),
        overlapping=len(overlapping) if dropping else 0,
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.text_bytes for shard in shards),
    )


def _overlap_records(overlaps: Sequence[Overlap]) -> tuple[OverlapRecord, ...]:
    documents = Counter((overlap.source, overlap.against) for overlap in overlaps)
    return tuple(
        OverlapRecord(source=source, against=against, documents=count)
        for (source, against), count in sorted(documents.items())
    )


def overlap_report(config: DatasetConfig, records: Sequence[UnitRecord], overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """The overlaps of training with held-out text and evaluation sets, as plain values."""
    assert config.overlap
    trained = Counter[str]()
    for shard in (shard for record in records for shard in record.shards if shard.split == "train"):
        trained[shard.source] += shard.documents
    return {
        "words": config.overlap.words,
        "action": config.overlap.action,
        "training_documents": dict(trained),
        "overlaps": [
            {
                **overlap_count.model_dump(mode="json"),
                "examples": [
                    overlap.model_dump(mode="json", include={"unit", "document", "runs", "words"})
                    for overlap in overlaps
                    if (overlap.source, overlap.against) == (overlap_count.source, overlap_count.against)
                ][:EXAMPLES],
            }
            for overlap_count in _overlap_records(overlaps)
        ],
    }
