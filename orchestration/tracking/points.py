"""Values of MLflow metrics and parameters from a run's files."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.common.files import read_json


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    time: float  # unix seconds
    step: int


def evaluation_points(paths: Iterable[Path]) -> Iterator[Point]:
    for path in paths:
        result = read_json(path)
        for key, value in result["metrics"].items():
            yield Point(key, value, result["ended"], result["step"])


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten a mapping to dotted keys and plain values; a list becomes one value, as JSON."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from flatten(item, f"{name}.")
        else:
            yield name, json.dumps(item) if isinstance(item, list) else item


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
