"""Provenance of a dataset: its input files with their hashes, and whether they are still the same."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from ...models.common.errors import UserError
from ...models.common.files import sha256_file, write_text
from ..config import DatasetConfig
from ..formats.records import one_line
from . import find_source

FILE_NAME = "inputs.jsonl"
Marks = dict[str, tuple[int, int, int, int]]
"""Size, times of change of contents and of status, and inode of files: whoever writes to a file changes one of them."""


def marks_of(paths: Iterable[str | Path]) -> Marks:
    """Marks (size, times of change, inode) of the files that exist."""
    marks: Marks = {}
    for path in map(str, paths):
        try:
            status = os.stat(path)
        except OSError:
            continue
        marks[path] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return marks


def check_unchanged(folder: Path, marks: Marks, hashes: dict[str, str]) -> None:
    """Compare input files with what was hashed before they were read.

    Args:
        folder: of the dataset, for the message.
        marks: taken before the files were hashed; a file whose marks are the same is not hashed again.
        hashes: sha256 by path.

    Raises:
        UserError: a file changed.
    """
    now = marks_of(marks)
    for path, sha256 in hashes.items():
        if path in marks and now.get(path) != marks[path] and (path not in now or sha256_file(Path(path)) != sha256):
            raise UserError(
                f"{one_line(path)} changed while {folder} was prepared: delete that folder and prepare again"
            )


def write_inputs(folder: Path, rows: Iterable[tuple[str | None, Path, int, str]]) -> None:
    """Write the list of input files: source (None for a tokenizer that was loaded), path, bytes, sha256."""
    lines = [
        json.dumps({"source": source, "path": str(path), "bytes": size, "sha256": sha256})
        for source, path, size, sha256 in rows
    ]
    write_text(folder / FILE_NAME, "".join(line + "\n" for line in lines))


def changed_input(folder: Path, config: DatasetConfig, downloads: Path) -> str | None:
    """Say in one line what changed in the sources of a finished dataset; None if nothing did, or they are not here.

    A file that is gone is no change: a dataset is used without its sources too.
    """
    listing = folder / FILE_NAME
    if not listing.is_file():  # of an earlier version
        return None
    written = listing.stat().st_mtime_ns
    rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    here = marks_of(row["path"] for row in rows)
    for row in rows:
        if row["path"] not in here:
            continue
        size, *times, _ = here[row["path"]]
        if size != row["bytes"] or (max(times) >= written and sha256_file(Path(row["path"])) != row["sha256"]):
            return f"{one_line(row['path'])} is not what it was"
    for source in config.sources:
        known = {row["path"] for row in rows if row["source"] == source.label}
        if source.paths and known and known <= here.keys():
            new = sorted(set(find_source(source, downloads).files) - known)
            if new:
                return f"source {source.label} has {len(new)} more files, the first: {one_line(new[0])}"
    return None
