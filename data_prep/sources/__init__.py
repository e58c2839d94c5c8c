"""Adapters of text sources, each of which finds or downloads the files of one kind of source.

An adapter is a function `(config, downloads) -> SourceFiles`; a new one is a module and a line in `ADAPTERS`, and its
kind in `config.SourceKind`. A package is a line in `packages.PACKAGES`.
"""

from collections.abc import Callable
from pathlib import Path

from ..config import SourceConfig
from .fetch import FetchError
from .files import SourceFiles, find_local
from .huggingface import find_hub
from .packages import PACKAGES, find_package
from .python_stdlib import find_python_stdlib
from .saved import find_saved

ADAPTERS: dict[str, Callable[[SourceConfig, Path], SourceFiles]] = {
    **dict.fromkeys(("text", "jsonl", "csv", "parquet", "arrow", "megatron"), find_local),
    "save_to_disk": find_saved,
    "huggingface": find_hub,
    "python-stdlib": find_python_stdlib,
    "debian-descriptions": find_package,
    **dict.fromkeys(PACKAGES, find_package),
}


def find_source(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Find the files of a source, fetched into `downloads` if needed; those of its fallback if that fails.

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
