"""Data preparation with progress, on Ray Data or on this machine's processes.

Preparation code is imported only when needed: a GPU machine with a finished dataset may lack its libraries.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...data_prep.config import DatasetConfig
from ...data_prep.preparing.manifest import FILE_NAME as MANIFEST_FILE
from ...data_prep.preparing.manifest import QUARANTINE_FILE, SourceRecord, read_manifest
from ...models.common.errors import UserError
from ..progress.bars import Stage, console, stage

if TYPE_CHECKING:
    from ...data_prep.preparing.prepare import MapUnits

PRINTED_FAULTS = 20
STAGES = {"sources": "sources", "clean": "slices", "tokenizer": "tokenizers", "tokenize": "slices"}


def dataset_is_complete(config: DatasetConfig, root: Path) -> bool:
    """Whether the dataset of `config` exists below `root` and is complete."""
    folder = root / config.name
    return (folder / MANIFEST_FILE).is_file() and read_manifest(folder).config == config


def prepare_dataset(config: DatasetConfig, root: Path, map_units: "MapUnits | None" = None) -> Path:
    """Prepare the dataset below `root`; a complete one is recognised. Returns its folder.

    Raises:
        UserError: a source is missing or empty, the folder holds another dataset, or the disk is full.
    """
    folder = root / config.name
    if dataset_is_complete(config, root):
        change = _changed_source(config, root)
        console.print(
            f"{folder}: dataset is complete; "
            + (f"{change} since, which it does not have" if change else "nothing to do"),
            markup=False,
        )
        return folder
    from ...data_prep.preparing.prepare import prepare
    from .executors import process_map

    with _StageProgress() as progress:
        prepare(config, root, map_units=map_units or process_map, on_progress=progress.update)
    _print_outcome(folder)
    return folder


def refuse_changed_sources(config: DatasetConfig, root: Path) -> None:
    """Refuse a complete dataset whose sources or tokenizer file changed since it was made.

    Raises:
        UserError: names the first of them.
    """
    if dataset_is_complete(config, root) and (change := _changed_source(config, root)):
        folder = root / config.name
        raise UserError(f"{change} since {folder} was prepared: choose another data.name, or delete that folder")


def _changed_source(config: DatasetConfig, root: Path) -> str | None:
    from ...data_prep.preparing.prepare import DOWNLOADS_FOLDER
    from ...data_prep.sources.inputs import changed_input

    return changed_input(root / config.name, config, root / DOWNLOADS_FOLDER)


def prepare_on_ray(config: DatasetConfig, root: Path, workers: int | None, address: str | None) -> Path:
    """Prepare the dataset on the Ray cluster at `address`, or on a local one; see `prepare_dataset`.

    Raises:
        UserError: as `prepare_dataset`, or no cluster answers.
    """
    from ..jobs.cluster import ray_cluster
    from .executors import ray_data_map

    if dataset_is_complete(config, root):
        return prepare_dataset(config, root)
    with ray_cluster(address):
        return prepare_dataset(config, root, partial(ray_data_map, workers=workers))


def ray_is_installed() -> bool:
    """Whether Ray (the extra `cluster`) is installed."""
    return importlib.util.find_spec("ray") is not None


def _print_outcome(folder: Path) -> None:
    """Print a line for each source (documents written and excluded), for each overlap, and for each quarantined document."""
    from ...data_prep.formats.records import Fault
    from ...data_prep.preparing.prepare import OVERLAP_FILE

    manifest = read_manifest(folder)
    for source in manifest.sources:
        for line in _source_lines(source):
            console.print(line, markup=False)
    for overlap in manifest.overlaps:
        assert manifest.config.overlap is not None
        console.print(
            f"{overlap.source}: {overlap.documents:,} training documents share {manifest.config.overlap.words} words "
            f"in a row (shorter ones all their words) with {overlap.against} (see {folder / OVERLAP_FILE})"
        )
    if manifest.quarantine_sha256:
        faults = [json.loads(line) for line in (folder / QUARANTINE_FILE).read_text(encoding="utf-8").splitlines()]
        for fault in faults[:PRINTED_FAULTS]:
            console.print(f"quarantined: {Fault.model_validate(fault)}", markup=False)
        if len(faults) > PRINTED_FAULTS:
            console.print(f"... and {len(faults) - PRINTED_FAULTS:,} more: {folder / QUARANTINE_FILE}")


def _source_lines(source: SourceRecord) -> Iterator[str]:
    """Lines about a source: documents used, documents excluded, and text that the tokenizer could not read."""
    from ...data_prep.formats.records import one_line

    reasons = ", ".join(f"{count:,} {reason}" for reason, count in source.filtered_by.items())
    excluded = {
        f"filtered ({reasons})" if reasons else "filtered": source.filtered,
        "duplicates": source.duplicates,
        "near-duplicates": source.near_duplicates,
        "overlapping": source.overlapping,
        "quarantined": source.quarantined,
        "beyond the limit": source.beyond_limit,
    }
    exclusions = ", ".join(f"{count:,} {name}" for name, count in excluded.items() if count)
    yield (
        f"{source.name}: {source.documents:,} documents, {source.tokens:,} tokens, {source.bytes:,} bytes, "
        f"from {source.input_files:,} files" + (f" (left out: {exclusions})" if exclusions else "")
    )
    for skipped in source.skipped:
        yield f"{source.name}: {skipped.files:,} files or folders not read ({skipped.reason}), the first: {one_line(skipped.first)}"
    if source.unknown_tokens:
        share = source.unknown_tokens / source.tokens
        yield f"{source.name}: {share:.2%} of the tokens stand for text that the tokenizer does not know"
    if source.lost_characters:
        yield (
            f"{source.name}: the tokenizer loses at least {source.lost_characters / source.sampled_characters:.2%} of the "
            f"text (of {source.sampled_characters:,} characters that were decoded again)"
        )


class _StageProgress:
    """Progress displays of successive stages, from calls of `on_progress(stage, done, total)`."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._name: str | None = None
        self._stage: Stage | None = None

    def __enter__(self) -> "_StageProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def update(self, name: str, done: int, total: int) -> None:
        if self._stage is None or name != self._name:
            self._stack.close()
            self._name = name
            self._stage = self._stack.enter_context(stage(name, total, STAGES[name], done))
        self._stage.update(done, total=total)
