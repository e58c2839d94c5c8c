"""Records that cannot be used: listed in the quarantine file, and a source with too many of them refused."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...models.common.errors import UserError
from ...models.common.files import write_text
from ..formats.columns import listed
from ..formats.records import Fault
from .cleaning import CleaningUnit, CleanRecord
from .manifest import QUARANTINE_FILE
from .shards import UnitRecord
from .slices import Plan, SourcePlan


def quarantine_cleaned(
    plan: Plan, folder: Path, units: list[CleaningUnit], records: list[CleanRecord]
) -> dict[str, list[Fault]]:
    """Write the quarantine file; refuse a source that is empty or has too many faults. Returns the faults by source."""
    by_source: dict[str, list[CleanRecord]] = {}
    for unit, record in zip(units, records, strict=True):
        by_source.setdefault(unit.part.source, []).append(record)
    sources = (*plan.sources, *plan.evaluation)
    faults = {
        source.name: [*source.faults, *(fault for record in by_source.get(source.name, ()) for fault in record.faults)]
        for source in sources
    }
    _write_quarantine(folder, faults)
    for source in sources:
        own_records = by_source.get(source.name, [])
        total = sum(record.records for record in own_records) + len(source.faults)
        _check_faults(plan, folder, source, faults[source.name], total)
        if not any(record.documents for record in own_records):
            raise UserError(f"source {source.name} is empty: {_why_empty(own_records, total)}")
    return faults


def quarantine_tokenized(
    plan: Plan,
    folder: Path,
    faults: dict[str, list[Fault]],
    records: list[UnitRecord],
    units: list[CleaningUnit],
    cleaned: list[CleanRecord],
) -> None:
    """Add the documents that the tokenizer could not read as plain text to the quarantine; refuse too many of them."""
    found = [fault for record in records for fault in record.faults]
    if not found:
        return
    for fault in found:
        faults[fault.source].append(fault)
    _write_quarantine(folder, faults)
    totals = {unit.index: record.records for unit, record in zip(units, cleaned, strict=False)}
    for source in plan.sources:
        total = sum(totals[unit.index] for unit in units if unit.part.source == source.name) + len(source.faults)
        _check_faults(plan, folder, source, faults[source.name], total)


def _write_quarantine(folder: Path, faults: dict[str, list[Fault]]) -> None:
    lines = [json.dumps(fault.model_dump(mode="json")) for own in faults.values() for fault in own]
    if lines:
        write_text(folder / QUARANTINE_FILE, "\n".join(lines) + "\n")


def _check_faults(plan: Plan, folder: Path, source: SourcePlan, faults: list[Fault], total: int) -> None:
    """Refuse a source with too large a share of unusable records: of `total` records, or of the bytes of its files.

    Raises:
        UserError: with the first fault.
    """
    if not faults:
        return
    file_bytes = sum(file.bytes for file in source.files)
    lost = {fault.file: fault.lost_bytes for fault in faults if fault.lost_bytes}
    share = max(len(faults) / total, sum(lost.values()) / file_bytes if file_bytes else 0.0)
    if share > plan.config.max_bad_share:
        files = f" and {sum(lost.values()):,} of {file_bytes:,} bytes in whole files" if lost else ""
        raise UserError(
            f"source {source.name}: {len(faults)} of {total} records{files} cannot be used, more than "
            f"data.max_bad_share={plan.config.max_bad_share:g} (mend them or raise it); the first: {faults[0].place}: "
            f"{faults[0].reason}; all: {folder / QUARANTINE_FILE}"
        )


def _why_empty(records: Sequence[CleanRecord], total: int) -> str:
    """Why no record of a source became a document: the reasons with their counts, and its columns."""
    reasons = Counter[str]()
    for record in records:
        reasons.update(record.filtered_by)
        reasons["unreadable"] += len(record.faults)
    counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common() if count)
    columns = next((record.columns for record in records if record.columns), ())
    return (
        f"no text in {total:,} records"
        + (f" ({counted})" if counted else "")
        + (f"; its columns: {listed(list(columns))}" if columns else "")
        + ": correct the source's filters or text_column, or leave it out"
    )
