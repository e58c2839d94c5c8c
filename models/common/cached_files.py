"""Cached reading of small files that other processes write; a damaged or half-written file is None, never an error.

For what must not be overlooked, such as the files that a report is made of, there is `files.read_json`, which raises.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

T = TypeVar("T")
Stamp = tuple[int, int] | None

# libyaml's loader is ten times as fast as the one in Python; not every build of PyYAML has it.
YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def stamp(path: Path | str) -> Stamp:
    """Time of the last change (ns) and size (bytes) of a file or folder; None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def subfolders(folder: Path | str) -> list[Path]:
    """The folders in a folder, by name; none if it is missing."""
    return [Path(path) for path in subfolder_paths(folder)]


def subfolder_paths(folder: Path | str) -> list[str]:
    """`subfolders` as text, which costs a third of the time where thousands are looked at."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except OSError:
        return []


class Cache(Generic[T]):
    """Parsed files, cached until they change; at most `most` entries, of which the oldest is dropped first."""

    def __init__(self, parse: Callable[[bytes], T], most: int = 20_000):
        self._parse, self._most = parse, most
        self._entries: dict[Path, tuple[Stamp, T | None]] = {}

    def get(self, path: Path) -> T | None:
        """The parsed file; None if it is missing, unreadable or damaged."""
        current_stamp = stamp(path)
        cached = self._entries.get(path)
        if cached is not None and cached[0] == current_stamp:
            return cached[1]
        try:
            value = None if current_stamp is None else self._parse(path.read_bytes())
        except (OSError, ValueError, yaml.YAMLError):
            value = None
        if len(self._entries) >= self._most:
            self._entries.pop(next(iter(self._entries)), None)
        self._entries[path] = (current_stamp, value)
        return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


# The JSON object, or the YAML mapping, in a file.
read_json_if_whole = Cache(lambda data: _mapping(json.loads(data))).get
read_yaml_if_whole = Cache(lambda data: _mapping(yaml.load(data, Loader=YamlLoader))).get
