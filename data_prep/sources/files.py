"""Sources that lie on disk: text files, files of JSON lines, parquet files."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...models.common.errors import UserError
from ..config import SourceConfig

Format = Literal["text", "jsonl", "parquet", "hub"]


@dataclass(frozen=True)
class SourceFiles:
    """What an adapter found.

    Attributes:
        kind: the adapter that found them, which is the fallback's if the source could not be fetched.
        licence: of the text.
        format: "text", a file is a document; "jsonl", a line is one; "parquet", a row is one; "hub", a row of a
            streaming dataset is one.
        files: in a fixed order; none for "hub".
        origin: which release this is: package and version, or dataset and revision; empty for local files.
        hub_shards: number of row groups of a dataset of the hub.
    """

    kind: str
    licence: str
    format: Format
    files: tuple[Path, ...]
    origin: str = ""
    hub_shards: int = 0


def find_local(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Local files: the source's kind is their format; `.gz` and `.zst` behind the suffix are decompressed on reading."""
    assert config.kind in ("text", "jsonl", "parquet")
    return SourceFiles(config.kind, "the user's own", config.kind, _matches(config))


def _matches(config: SourceConfig) -> tuple[Path, ...]:
    """Files that the patterns name, sorted within each pattern; a folder stands for all files below it."""
    found: dict[Path, None] = {}
    for pattern in config.paths:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = [file for file in path.rglob("*") if file.is_file()]
        else:
            matches = [Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]
        if not matches:
            raise UserError(f"source {config.label}: no file matches {pattern}: correct sources.paths")
        found.update(dict.fromkeys(sorted(matches)))
    return tuple(found)
