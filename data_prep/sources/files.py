"""Sources that lie on disk: text files, and files of JSON lines."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...models.errors import UserError
from ..config import SourceConfig


class FetchError(UserError):
    """A source could not be fetched; its fallback may stand in."""


@dataclass(frozen=True)
class SourceFiles:
    """What an adapter found.

    Attributes:
        kind: the adapter that found them, which is the fallback's if the source could not be fetched.
        licence: of the text.
        format: "text", a file is a document, or "jsonl", a line is one.
        files: in a fixed order.
        text_column: the key of the text in a line of "jsonl".
    """

    kind: str
    licence: str
    format: Literal["text", "jsonl"]
    files: tuple[Path, ...]
    text_column: str = "text"


def find_text(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Local text files, UTF-8, one document each."""
    return SourceFiles("text", "the user's own", "text", _matches(config))


def find_jsonl(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Local files of JSON lines, one document a line."""
    return SourceFiles("jsonl", "the user's own", "jsonl", _matches(config), config.text_column)


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
