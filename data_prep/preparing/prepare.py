"""Preparation of a dataset: find and plan the sources, clean, select, train the tokenizer, tokenize, write the manifest."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file, write_aside, write_json
from ...models.common.validation import first_difference
from ..config import DatasetConfig, SourceConfig
from ..formats.records import one_line
from ..sources import find_source
from ..sources.huggingface import revision_of
from ..sources.inputs import Marks, changed_input, check_unchanged, marks_of, write_inputs
from .cleaning import FOLDER as WORK_FOLDER
from .cleaning import CleaningUnit, CleanRecord, clean_unit, finished_cleaning
from .manifest import FILE_NAME as MANIFEST_FILE
from .manifest import read_manifest, write_manifest
from .quarantine import quarantine_cleaned, quarantine_tokenized
from .selection import check_splits, forbidden_runs, select, selected_documents, tokenizer_sample
from .shards import RUNS_FILE, TokenizingUnit, UnitRecord, finished_record, tokenize_unit
from .slices import Plan, plan_source
from .summary import make_manifest, overlap_report, token_dtype_for
from .tokenizer import FILE_NAME as TOKENIZER_FILE
from .tokenizer import (
    adopt_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_file,
    train_tokenizer,
    vocabulary_size,
)

DOWNLOADS_FOLDER = "_downloads"
PLAN_FILE = "plan.json"
OVERLAP_FILE = "overlap.json"
FIRST_WAVE = 8  # units of a limited source that are started before the yield of a unit is known
MOST_TOKEN_BYTES = 8  # bytes of text to clean per token of a limit; a token has 3 to 5 bytes

U = TypeVar("U")
R = TypeVar("R")
MapUnits = Callable[[Callable[[U], R], list[U]], Iterable[R]]
OnProgress = Callable[[str, int, int], None]


def prepare(
    config: DatasetConfig, root: Path, *, map_units: MapUnits = map, on_progress: OnProgress | None = None
) -> Path:
    """Prepare a dataset and return its folder, `root/<name>`.

    A complete folder is returned at once; an interrupted one is completed with its missing units. The bytes depend only on the
    config and the sources, not on the order of the units, the workers, or interruptions.

    Args:
        config: of the dataset.
        root: the folder of all datasets; downloads are kept in `root/_downloads`.
        map_units: `map_units(function, units)` yields `function(unit)` of every unit in any order. Both pickle.
        on_progress: called with the stage ("sources", "clean", "tokenizer", "tokenize"), units done and units in all.

    Raises:
        UserError: missing or empty source, too much of one unreadable; the folder holds another config or is in use;
            no space left; a source changed meanwhile, or since the dataset was completed.
    """
    folder = Path(root) / config.name
    report = on_progress or (lambda stage, done, total: None)
    if (folder / MANIFEST_FILE).is_file():
        _check_same_config(read_manifest(folder).config, config, folder)
        if change := changed_input(folder, config, folder.parent / DOWNLOADS_FOLDER):
            raise UserError(f"{change} since {folder} was prepared: choose another name, or delete the folder")
        return folder
    with _locked(folder):
        if config.tokenizer.load:  # checked before any long work
            _make_tokenizer(config, folder, tuple, report)
        marks: Marks = {}
        plan = _make_plan(config, folder, report, marks)
        units, cleaned = _clean(plan, folder, map_units, report)
        check_unchanged(folder, marks, plan.files)
        faults = quarantine_cleaned(plan, folder, units, cleaned)
        training = [unit for unit in units if not unit.evaluation]
        selection = select(config, training)
        check_splits(config, folder, [s.name for s in plan.sources], selected_documents(training, selection))
        sha256 = _make_tokenizer(config, folder, lambda: tokenizer_sample(config, training, selection), report)
        runs_sha256 = _write_runs(folder, units) if config.overlap else None
        dropped = _dropped_positions(selection.units, selection.positions, selection.dropped, len(training))
        vocab_size = vocabulary_size(load_tokenizer(folder))
        tokenizing_units = [
            TokenizingUnit(
                cleaned=unit,
                drop=drop,
                tokenizer_sha256=sha256,
                dtype=token_dtype_for(vocab_size),
                shard_tokens=config.shard_tokens,
                runs_sha256=runs_sha256,
                drop_overlaps=bool(config.overlap and config.overlap.action == "drop"),
            )
            for unit, drop in zip(training, dropped, strict=True)
        ]
        records = _tokenize(config, tokenizing_units, map_units, report)
        quarantine_tokenized(plan, folder, faults, records, units, cleaned)
        overlaps = [overlap for record in records for overlap in record.overlaps]
        if config.overlap:
            write_json(folder / OVERLAP_FILE, overlap_report(config, records, overlaps))
        manifest = make_manifest(config, folder, plan.sources, training, cleaned, selection, records)
        write_inputs(folder, _inputs(plan))
        write_manifest(folder, manifest)
        _remove_leftovers(folder)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}): name a folder you own") from error
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"{folder} is being prepared by another process: wait for it, or stop it") from error


def _check_same_config(old: DatasetConfig, new: DatasetConfig, folder: Path) -> None:
    difference = first_difference(old.model_dump(mode="json"), new.model_dump(mode="json"))
    if difference:
        field, before, now = difference
        raise UserError(
            f"{folder} was prepared with {field}={before!r}, not {now!r}: choose another name, or delete the folder"
        )


def _make_plan(config: DatasetConfig, folder: Path, report: OnProgress, marks: Marks) -> Plan:
    """Make the plan, or load that of an interrupted preparation, so that a source from its fallback stays so.

    Args:
        marks: filled in, before the files are hashed.
    """
    path = folder / PLAN_FILE
    if path.is_file():
        plan = Plan.model_validate(read_json(path))
        # Units finished before a source was refused for too many bad records stay valid under any other limit.
        plan = plan.model_copy(
            update={"config": plan.config.model_copy(update={"max_bad_share": config.max_bad_share})}
        )
        _check_same_config(plan.config, config, folder)
        marks.update(marks_of(plan.files))
        for file, sha256 in plan.files.items():
            if file not in marks or sha256_file(Path(file)) != sha256:
                raise UserError(f"{one_line(file)} changed since {folder} was begun: restore it, or delete that folder")
        return plan
    sources = (*config.sources, *config.evaluation_sources)
    plans = []
    for i, source in enumerate(sources):
        report("sources", i, len(sources))
        source_files = find_source(source, folder.parent / DOWNLOADS_FOLDER)
        marks.update(marks_of(source_files.files))
        plans.append(plan_source(source, source_files, config.unit_bytes))
    report("sources", len(sources), len(sources))
    count = len(config.sources)
    plan = Plan(config=config, sources=tuple(plans[:count]), evaluation=tuple(plans[count:]))
    write_json(path, plan.model_dump(mode="json"))
    return plan


class _Stage:
    """A stage of the preparation: runs unfinished units through the executor and reports progress over all calls."""

    def __init__(self, name: str, function: Callable, finished: Callable, map_units: MapUnits, report: OnProgress):
        self.name, self.function, self.finished = name, function, finished
        self.map_units, self.report = map_units, report
        self.done = self.total = 0

    def run(self, units: Sequence) -> list:
        """Run the unfinished ones of `units`; returns the records of all, in order."""
        records = {unit.index: record for unit in units if (record := self.finished(unit))}
        missing = [unit for unit in units if unit.index not in records]
        self.total += len(units)
        self.done += len(records)
        self.report(self.name, self.done, self.total)
        for record in self.map_units(self.function, missing) if missing else ():
            records[record.index] = record
            self.done += 1
            self.report(self.name, self.done, self.total)
        lost = [unit.index for unit in units if unit.index not in records]
        if lost:
            raise RuntimeError(f"map_units returned no result for units {lost}")
        return [records[unit.index] for unit in units]

    def run_until(self, units: Sequence, reached: Callable[[list], float]) -> list:
        """Run the shortest prefix of `units` for which `reached(records)` is at least 1, else all; returns its records."""
        records: list = []
        while len(records) < len(units) and (share := reached(records)) < 1:
            # The number of missing units, estimated from those so far.
            more = math.ceil(len(records) * (1 - share) / share) if share else FIRST_WAVE
            records += self.run(units[len(records) : len(records) + more])
        while len(records) > 1 and reached(records[:-1]) >= 1:
            records.pop()
        return records


def _clean(
    plan: Plan, folder: Path, map_units: MapUnits, report: OnProgress
) -> tuple[list[CleaningUnit], list[CleanRecord]]:
    """Run the first pass: the used units and their records, of a limited source only as many as needed."""
    stage = _Stage("clean", clean_unit, finished_cleaning, map_units, report)
    units = _cleaning_units(plan, folder)
    by_source: dict[str, list[CleaningUnit]] = {}
    for unit in units:
        by_source.setdefault(unit.part.source, []).append(unit)
    records: dict[int, CleanRecord] = {}
    limited = {source.label: source for source in plan.config.sources if source.limit_documents or source.limit_tokens}
    for record in stage.run([unit for unit in units if unit.part.source not in limited]):
        records[record.index] = record
    for label, source in limited.items():
        for record in stage.run_until(
            by_source[label], lambda finished, source=source: _share_cleaned(source, finished)
        ):
            records[record.index] = record
    used = [unit for unit in units if unit.index in records]
    return used, [records[unit.index] for unit in used]


def _share_cleaned(source: SourceConfig, records: list[CleanRecord]) -> float:
    shares = [0.0]
    if source.limit_documents:
        shares.append(sum(record.documents for record in records) / source.limit_documents)
    if source.limit_tokens:
        shares.append(sum(record.bytes for record in records) / (source.limit_tokens * MOST_TOKEN_BYTES))
    return max(shares)


def _cleaning_units(plan: Plan, folder: Path) -> list[CleaningUnit]:
    config = plan.config
    parts = [(source, part, False) for source in plan.sources for part in source.slices]
    parts += [(source, part, True) for source in plan.evaluation for part in source.slices]
    return [
        CleaningUnit(
            folder=folder.resolve(),
            index=i,
            part=part,
            source=source.config,
            revision=revision_of(source.origin) if part.format == "hub" else None,
            evaluation=evaluation,
            seed=config.seed,
            heldout_fraction=config.heldout_fraction,
            max_document_bytes=config.max_document_bytes,
            near_duplicates=None if evaluation else config.near_duplicates,
            run_words=config.overlap.words if config.overlap else None,
        )
        for i, (source, part, evaluation) in enumerate(parts)
    ]


def _inputs(plan: Plan) -> Iterator[tuple[str | None, Path, int, str]]:
    """The rows of the list of input files."""
    for source in (*plan.sources, *plan.evaluation):
        for file in source.files:
            yield source.name, file.path, file.bytes, file.sha256
    loaded = plan.config.tokenizer.load and tokenizer_file(plan.config.tokenizer.load)
    if loaded:
        yield None, loaded.absolute(), loaded.stat().st_size, sha256_file(loaded)


def _make_tokenizer(config: DatasetConfig, folder: Path, texts: Callable[[], Iterable[str]], report: OnProgress) -> str:
    """Train or load the tokenizer unless it exists; returns its sha256."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        report("tokenizer", 0, 1)
        settings = config.tokenizer
        if settings.load:
            tokenizer = adopt_tokenizer(settings.load, settings.special_tokens)
        else:
            tokenizer = train_tokenizer(texts(), settings.vocab_size, settings.special_tokens)
        save_tokenizer(tokenizer, folder)
        report("tokenizer", 1, 1)
    return sha256_file(path)


def _write_runs(folder: Path, units: list[CleaningUnit]) -> str:
    path = folder / RUNS_FILE
    with write_aside(path) as aside, open(aside, "wb") as file:
        np.savez(file, allow_pickle=False, **forbidden_runs(units))
    return sha256_file(path)


def _dropped_positions(
    units: np.ndarray, positions: np.ndarray, dropped: np.ndarray, count: int
) -> list[tuple[int, ...]]:
    """Positions of the dropped documents, by unit."""
    by_unit: list[list[int]] = [[] for _ in range(count)]
    for unit, position in zip(units[dropped].tolist(), positions[dropped].tolist(), strict=True):
        by_unit[unit].append(position)
    return [tuple(part) for part in by_unit]


def _tokenize(
    config: DatasetConfig, units: list[TokenizingUnit], map_units: MapUnits, report: OnProgress
) -> list[UnitRecord]:
    """Tokenize the cleaned slices; returns their records in order. A token limit ends a source at the document that reaches it."""
    stage = _Stage("tokenize", tokenize_unit, finished_record, map_units, report)
    limits = {source.label: source.limit_tokens for source in config.sources if source.limit_tokens}
    records = {r.index: r for r in stage.run([u for u in units if u.cleaned.part.source not in limits])}
    for label, limit in limits.items():
        own_units = [unit for unit in units if unit.cleaned.part.source == label]
        own_records = stage.run_until(
            own_units, lambda finished, limit=limit: sum(record.tokens for record in finished) / limit
        )
        earlier_tokens = sum(record.tokens for record in own_records[:-1])
        if earlier_tokens + own_records[-1].tokens > limit:
            last = own_units[len(own_records) - 1].model_copy(update={"limit_tokens": limit - earlier_tokens})
            own_records[-1:] = stage.run([last])
        records.update((record.index, record) for record in own_records)
    return [records[index] for index in sorted(records)]


def _remove_leftovers(folder: Path) -> None:
    """Remove the files that only an interrupted preparation needs, and leftovers of killed workers or a limit."""
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
    (folder / PLAN_FILE).unlink(missing_ok=True)
    shards = read_manifest(folder).shards
    used = {name for shard in shards for name in (shard.file, shard.documents_file)}
    for leftover in (*folder.glob(".*.tmp"), *folder.glob("*.bin"), *folder.glob("*.docs.npy")):
        if leftover.name not in used:
            leftover.unlink(missing_ok=True)
