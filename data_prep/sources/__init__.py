"""Adapters that turn a source into files of documents.

An adapter is a function `(config, downloads) -> SourceFiles`; a new one is a module and a line in `ADAPTERS`.
"""

from collections.abc import Callable
from pathlib import Path

from ..config import SourceConfig
from .files import FetchError, SourceFiles, find_jsonl, find_text
from .python_stdlib import find_python_stdlib
from .wikipedia_vital import fetch_wikipedia_vital

ADAPTERS: dict[str, Callable[[SourceConfig, Path], SourceFiles]] = {
    "text": find_text,
    "jsonl": find_jsonl,
    "python-stdlib": find_python_stdlib,
    "wikipedia-vital": fetch_wikipedia_vital,
}


def find_source(config: SourceConfig, downloads: Path) -> SourceFiles:
    """The source's files, fetched into `downloads` if they are not there yet; those of the fallback if that fails.

    Raises:
        UserError: missing or empty source, or it cannot be fetched and has no fallback.
    """
    try:
        return ADAPTERS[config.kind](config, downloads)
    except FetchError:
        if config.fallback is None:
            raise
        return ADAPTERS[config.fallback](config, downloads)


__all__ = ["ADAPTERS", "FetchError", "SourceFiles", "find_source"]
