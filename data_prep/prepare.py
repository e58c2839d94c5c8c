"""Raw sources to a dataset: find and plan, train the tokenizer, tokenize units of work, write the manifest."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from ..models.errors import UserError
from ..models.files import read_json, sha256_file, sha256_json, write_json
from ..models.validation import first_difference
from .config import DatasetConfig
from .documents import document_draw, is_heldout
from .manifest import FILE_NAME as MANIFEST_FILE
from .manifest import Manifest, SourceRecord, TokenDtype, check_files, config_sha256, read_manifest, write_manifest
from .shards import RECORDS_FOLDER, Unit, UnitRecord, finished_record, tokenize_unit
from .sources import find_source
from .tokenizer import FILE_NAME as TOKENIZER_FILE
from .tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from .units import SourcePlan, plan_source, read_documents

DOWNLOADS_FOLDER = "_downloads"
PLAN_FILE = "plan.json"

MapUnits = Callable[[Callable[[Unit], UnitRecord], list[Unit]], Iterable[UnitRecord]]
OnProgress = Callable[[str, int, int], None]


class Plan(BaseModel):
    """The completion file of the first stage: the config, and every source found, hashed and cut into slices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: DatasetConfig
    sources: tuple[SourcePlan, ...]


def prepare(
    config: DatasetConfig, root: Path, *, map_units: MapUnits = map, on_progress: OnProgress | None = None
) -> Path:
    """Prepare a dataset and return its folder, `root/<name>`.

    A complete folder is returned at once. An interrupted one goes on with the units that are missing. The bytes depend
    on the config and the sources alone: not on the order of the units, on who does them, or on interruptions.

    Args:
        config: what to prepare.
        root: the folder of all datasets; downloads are kept in `root/_downloads`.
        map_units: `map_units(function, units)` yields `function(unit)` of every unit in any order. Both pickle.
        on_progress: called with the stage ("sources", "tokenizer", "tokenize"), units done and units in all.

    Raises:
        UserError: missing, empty or unreadable source; the folder holds another config or is in use; no space left.
    """
    folder = Path(root) / config.name
    report = on_progress or (lambda stage, done, total: None)
    if (folder / MANIFEST_FILE).is_file():
        _check_same_config(read_manifest(folder).config, config, folder)
        return folder
    with _only_one(folder):
        plan = _make_plan(config, folder, report)
        sha256 = _make_tokenizer(plan, folder, report)
        records = _tokenize(plan, folder, sha256, map_units, report)
        write_manifest(folder, _make_manifest(plan, folder, sha256, records))
        _tidy(folder)
    return folder


def verify(folder: Path) -> Manifest:
    """Hash every file of a dataset again.

    Raises:
        UserError: names the first file that is missing or corrupt, what was expected, and the remedy.
    """
    manifest = read_manifest(folder)
    check_files(Path(folder), manifest, hashes=True)
    return manifest


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system drops it when the process dies, however it dies."""
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


def _make_plan(config: DatasetConfig, folder: Path, report: OnProgress) -> Plan:
    """The plan of an interrupted run if there is one, so that a source which came from its fallback still does."""
    path = folder / PLAN_FILE
    if path.is_file():
        plan = Plan.model_validate(read_json(path))
        _check_same_config(plan.config, config, folder)
        for file in (file for source in plan.sources for file in source.files):
            if not file.path.is_file() or sha256_file(file.path) != file.sha256:
                raise UserError(f"{file.path} changed since {folder} was begun: restore it, or delete that folder")
        return plan
    sources = []
    for i, source in enumerate(config.sources):
        report("sources", i, len(config.sources))
        found = find_source(source, folder.parent / DOWNLOADS_FOLDER)
        sources.append(plan_source(source, found, config.unit_bytes))
    report("sources", len(sources), len(sources))
    plan = Plan(config=config, sources=tuple(sources))
    write_json(path, plan.model_dump(mode="json"))
    return plan


def _make_tokenizer(plan: Plan, folder: Path, report: OnProgress) -> str:
    """Train the tokenizer unless that is done; returns its sha256."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        report("tokenizer", 0, 1)
        save_tokenizer(train_tokenizer(_training_texts(plan), plan.config.tokenizer.vocab_size), folder)
        report("tokenizer", 1, 1)
    return sha256_file(path)


def _training_texts(plan: Plan) -> Iterator[str]:
    """A sample of the training documents, `train_bytes` in expectation, each source in its proportion."""
    config = plan.config
    share = config.tokenizer.train_bytes / sum(source.bytes for source in plan.sources)
    for part in (part for source in plan.sources for part in source.slices):
        for text in read_documents(part):
            chosen = share >= 1 or document_draw(text, config.seed, "tokenizer") < share
            if chosen and not is_heldout(text, config.seed, config.heldout_fraction):
                yield text


def _tokenize(
    plan: Plan, folder: Path, tokenizer_sha256: str, map_units: MapUnits, report: OnProgress
) -> list[UnitRecord]:
    """Records of all units, in order; only those that are missing are worked on."""
    config = plan.config
    dtype = _dtype_for(load_tokenizer(folder).get_vocab_size())
    parts = [part for source in plan.sources for part in source.slices]
    units = [
        Unit(
            folder=folder.resolve(),
            index=i,
            part=part,
            tokenizer_sha256=tokenizer_sha256,
            dtype=dtype,
            heldout_fraction=config.heldout_fraction,
            shard_tokens=config.shard_tokens,
            seed=config.seed,
        )
        for i, part in enumerate(parts)
    ]
    records = {record.index: record for unit in units if (record := finished_record(unit))}
    missing = [unit for unit in units if unit.index not in records]
    report("tokenize", len(records), len(units))
    for record in map_units(tokenize_unit, missing):
        records[record.index] = record
        report("tokenize", len(records), len(units))
    lost = [unit.index for unit in units if unit.index not in records]
    if lost:
        raise RuntimeError(f"map_units returned no result for units {lost}")
    return [records[unit.index] for unit in units]


def _dtype_for(vocab_size: int) -> TokenDtype:
    return "uint16" if vocab_size <= 2**16 else "uint32"


def _make_manifest(plan: Plan, folder: Path, tokenizer_sha256: str, records: list[UnitRecord]) -> Manifest:
    shards = tuple(shard for record in records for shard in record.shards)
    for source in plan.sources:
        if not any(shard.source == source.name and shard.split == "train" for shard in shards):
            raise UserError(f"source {source.name} is empty: it has no text to train on")
    if plan.config.heldout_fraction and not any(shard.split == "heldout" for shard in shards):
        raise UserError(
            f"no document of {sum(shard.documents for shard in shards)} fell into the held-out "
            f"{plan.config.heldout_fraction:.2%}: raise heldout_fraction, or add documents, and delete {folder}"
        )
    sources = tuple(
        SourceRecord(
            name=source.name,
            kind=source.kind,
            licence=source.licence,
            input_files=len(source.files),
            input_sha256=sha256_json([file.sha256 for file in source.files]),
            documents=sum(shard.documents for shard in shards if shard.source == source.name),
            bytes=sum(shard.text_bytes for shard in shards if shard.source == source.name),
        )
        for source in plan.sources
    )
    vocab_size = load_tokenizer(folder).get_vocab_size()
    return Manifest(
        config=plan.config,
        config_sha256=config_sha256(plan.config),
        tokenizer_sha256=tokenizer_sha256,
        vocab_size=vocab_size,
        dtype=_dtype_for(vocab_size),
        sources=sources,
        shards=shards,
    )


def _tidy(folder: Path) -> None:
    """Remove what only an interrupted run needs, and what killed workers left behind."""
    shutil.rmtree(folder / RECORDS_FOLDER, ignore_errors=True)
    (folder / PLAN_FILE).unlink(missing_ok=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
