"""Files that others write, read again only when they changed. A damaged or half-written one is None, never an error."""

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
    """Time of the last change (ns) and size (bytes) of a file or folder; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


class Cache(Generic[T]):
    """What `parse` makes of a file's bytes, kept until the file changes; the oldest entries go when there are too many."""

    def __init__(self, parse: Callable[[bytes], T], most: int = 20_000):
        self._parse, self._most = parse, most
        self._kept: dict[Path, tuple[Stamp, T | None]] = {}

    def get(self, path: Path) -> T | None:
        """The parsed file; None if it is missing, unreadable or damaged."""
        now = stamp(path)
        kept = self._kept.get(path)
        if kept is not None and kept[0] == now:
            return kept[1]
        try:
            value = None if now is None else self._parse(path.read_bytes())
        except (OSError, ValueError, yaml.YAMLError):
            value = None
        if len(self._kept) >= self._most:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[path] = (now, value)
        return value


def parse_json_object(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: something else.
    """
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def parse_yaml_mapping(data: bytes) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        ValueError, yaml.YAMLError: something else.
    """
    value = yaml.load(data, Loader=YamlLoader)
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def parse_events(data: bytes) -> list[dict[str, Any]]:
    """The events of a log; a torn last line and damaged lines are left out."""
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [event for event in map(_event, lines) if event is not None]


def last_events(path: Path, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The events at the end of a log, oldest first: as many as it takes until `enough` says so, or all of them.

    A torn last line and damaged lines are left out. A missing log has none.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            length = TAIL_BYTES
            while True:
                begin = max(0, size - length)
                file.seek(begin)
                data = file.read(size - begin)
                # The first line is whole only at the file's start.
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
