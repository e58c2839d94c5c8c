"""Cached reading of small files that other processes write; a damaged or half-written file is None, never an error.

For what must not be overlooked, such as the files that a report is made of, there is `files.read_json`, which raises.
"""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

T = TypeVar("T")
Stamp = tuple[int, int] | None
MOST_BYTES = 32 << 20  # of a small file
MOST_DEPTH = 100  # of a YAML file

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


def is_inside(path: Path | str, folder: Path | str) -> bool:
    """Whether a path, after following links, lies inside a folder; a link out of it may lead to a file that must not be shown."""
    parent, name = os.path.split(path)
    if parent == os.fspath(folder) and name not in ("", ".", "..") and not os.path.islink(path):
        return True  # a file directly in the folder: far fewer system calls than resolving two paths
    place = os.path.realpath(folder)
    return os.path.realpath(path).startswith(place.rstrip(os.sep) + os.sep)


class IsNotRegular(OSError):
    """Raised where a regular file is expected and there is a pipe, a device, a folder or a file that is far too long."""


def read_regular(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """Read the bytes of a regular file and refuse pipes and devices, whose opening may block for ever.

    Raises:
        OSError: it cannot be read.
        IsNotRegular: it is no regular file, or has more than `most` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        os.close(descriptor)
        what = (
            f"has {status.st_size:,} bytes, more than {most:,}"
            if stat.S_ISREG(status.st_mode)
            else "is no regular file"
        )
        raise IsNotRegular(f"{path} {what}")
    with open(descriptor, "rb") as file:
        return file.read(most)


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
            value = None if current_stamp is None else self._parse(read_regular(path))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):  # RecursionError: nested a thousand deep
            value = None
        if len(self._entries) >= self._most:
            self._entries.pop(next(iter(self._entries)), None)
        self._entries[path] = (current_stamp, value)
        return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def _parse_yaml(data: bytes) -> dict[str, Any]:
    """The mapping in YAML; libyaml's loader ends the process if it is nested some thousand deep."""
    openings = data.count(b"[") + data.count(b"{") + data.count(b"- ") + data.count(b"? ")
    indents = max((len(line) - len(line.lstrip(b" ")) for line in data.splitlines()), default=0)
    if openings + indents > MOST_DEPTH:  # it may be nested too deep: measure the depth
        depth = 0
        for event in yaml.parse(data, Loader=YamlLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
    return _mapping(yaml.load(data, Loader=YamlLoader))


# The JSON object, or the YAML mapping, in a file. NaN and infinity, which JSON lacks, are None.
read_json_if_whole = Cache(lambda data: _mapping(json.loads(data, parse_constant=lambda _: None))).get
read_yaml_if_whole = Cache(_parse_yaml).get
