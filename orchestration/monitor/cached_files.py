"""Cached reading of files that other processes write; a damaged or half-written file is None, never an error."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from ...models.common.renamed_keys import with_new_keys

T = TypeVar("T")
Stamp = tuple[int, int] | None

# libyaml's loader is ten times as fast as the one in Python; not every build of PyYAML has it.
YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TAIL_BYTES = 1 << 12


def stamp(path: Path | str) -> Stamp:
    """Time of the last change (ns) and size (bytes) of a file or folder; None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


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


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: not a JSON object.
    """
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def parse_yaml_mapping(data: bytes) -> dict[str, Any]:
    """Parse a YAML mapping.

    Raises:
        ValueError, yaml.YAMLError: not a YAML mapping.
    """
    value = yaml.load(data, Loader=YamlLoader)
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def parse_events(data: bytes) -> list[dict[str, Any]]:
    """Parse the events of a log; a torn last line and damaged lines are omitted."""
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [event for event in map(_event, lines) if event is not None]


def last_events(path: Path, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The last events of a log, oldest first: as many as `enough` requires, or all of them.

    A torn last line and damaged lines are omitted. A missing log has no events.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            length = TAIL_BYTES
            while True:
                begin = max(0, size - length)
                file.seek(begin)
                data = file.read(size - begin)
                # The first line may be torn unless it is at the file's start.
                events = parse_events(data if begin == 0 else data[data.find(b"\n") + 1 :])
                if begin == 0 or enough(events):
                    return events
                length *= 8
    except OSError:
        return []


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(event, dict) and "kind" in event and "time" in event
    return with_new_keys("event", event) if whole else None
