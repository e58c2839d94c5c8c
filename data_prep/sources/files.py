"""Local sources: text files, files of JSON lines, parquet files."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...models.common.errors import UserError
from ..config import SourceConfig

Format = Literal["text", "jsonl", "parquet", "hub"]


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, as found by an adapter.

    Attributes:
        kind: of the adapter; the fallback's if the source could not be fetched.
        licence: of the text.
        format: of a document: "text", a file; "jsonl", a line; "parquet", a row; "hub", a row of a streaming dataset.
        files: in a fixed order; none for "hub".
        origin: the release: package and version, or dataset and revision; empty for local files.
        hub_shards: number of row groups of a dataset of the hub.
    """

    kind: str
    licence: str
    format: Format
    files: tuple[Path, ...]
    origin: str = ""
    hub_shards: int = 0


def find_local(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Find local files; the source's kind is their format, and `.gz` and `.zst` behind the suffix are decompressed on reading."""
    assert config.kind in ("text", "jsonl", "parquet")
    return SourceFiles(config.kind, "the user's own", config.kind, _matches(config))


def _matches(config: SourceConfig) -> tuple[Path, ...]:
    """The files that match the patterns, sorted within each pattern; a folder matches all files below it."""
    files: dict[Path, None] = {}
    for pattern in config.paths:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = [file for file in path.rglob("*") if file.is_file()]
        else:
            matches = [Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]
        if not matches:
            raise UserError(f"source {config.label}: no file matches {pattern}: correct sources.paths")
        files.update(dict.fromkeys(sorted(matches)))
    return tuple(files)
