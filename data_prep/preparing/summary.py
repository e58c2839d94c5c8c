"""The manifest and the overlap report of a finished dataset."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...models.common.files import sha256_file, sha256_json
from ..config import DatasetConfig
from .cleaning import CleaningUnit, CleanRecord
from .manifest import QUARANTINE_FILE, Manifest, OverlapRecord, SourceRecord, TokenDtype, config_sha256
from .selection import Selection, check_splits
from .shards import Overlap, UnitRecord
from .slices import SourcePlan
from .tokenizer import FILE_NAME as TOKENIZER_FILE
from .tokenizer import load_tokenizer, vocabulary_size

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
        UserError: a source has nothing to train on, or nothing was held out, after overlaps and limits.
    """
    shards = tuple(shard for record in records for shard in record.shards)
    documents = Counter[tuple[str, str]]()
    for shard in shards:
        documents[shard.source, shard.split] += shard.documents
    check_splits(config, folder, [source.name for source in plans], documents)
    overlaps = [overlap for record in records for overlap in record.overlaps]
    vocab_size = vocabulary_size(load_tokenizer(folder))
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
    unit_records = [record for record in records if record.index in {units[i].index for i in own}]
    filtered_by = Counter[str]()
    for record in clean_records:
        filtered_by.update(record.filtered_by)
    counts = {
        "records": sum(record.records for record in clean_records) + len(source.faults),
        "quarantined": sum(len(record.faults) for record in (*clean_records, *unit_records)) + len(source.faults),
        "filtered": filtered_by.total(),
        "duplicates": int((selection.duplicate & is_own).sum()),
        "near_duplicates": int((selection.near_duplicate & is_own).sum()),
        "overlapping": len(overlapping) if dropping else 0,
        "documents": sum(shard.documents for shard in shards),
    }
    return SourceRecord(
        name=source.name,
        kind=source.kind,
        licence=source.licence,
        origin=source.origin,
        input_files=len(source.files),
        input_sha256=sha256_json([file.sha256 for file in source.files] or source.origin),
        **counts,
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.text_bytes for shard in shards),
        filtered_by=dict(sorted(filtered_by.items())),
        beyond_limit=2 * counts["records"] - sum(counts.values()),
        unknown_tokens=sum(record.unknown for record in unit_records),
        sampled_characters=sum(record.sampled_characters for record in unit_records),
        lost_characters=sum(record.lost_characters for record in unit_records),
        skipped=source.skipped,
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
