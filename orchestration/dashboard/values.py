"""The values of runs for tables and comparisons: keys of the configuration, and the newest result of every evaluation."""

import threading
from typing import Any

from ...models.common.cached_files import Stamp
from ...pipeline.run.reader import RunReader
from ...pipeline.run.untrusted import flat, text
from .table import RunTable

EVALUATION = "eval/"  # before the name of a suite and of its metric: `eval/language/language/bits_per_byte`
MOST_COLUMNS = 20
# Seeds, and keys that differ between runs without any effect on what is trained.
NOT_COMPARED = ("name",)
SEEDS = ("seed", "data_seed")

Values = dict[str, Any]


class RunValues:
    """The values of all runs of a table by name, read again when their files change. Used by several threads."""

    def __init__(self, table: RunTable):
        self.table = table
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[Stamp, ...], Values]] = {}

    def of(self, name: str) -> Values:
        """Dotted keys of the configuration, and `eval/SUITE/METRIC` of the newest checkpoint that has it; empty if damaged."""
        stamps = self.table.stamps(name)
        with self._lock:
            known = self._known.get(name)
        if known is not None and known[0] == stamps:
            return known[1]
        values = self._read(name) if self.table.is_readable(name) else {}
        with self._lock:
            self._known[name] = (stamps, values)
        return values

    def _read(self, name: str) -> Values:
        reader = RunReader(self.table.folder / name)
        try:
            values = flat(reader.config())
            for result in reader.results():  # by step: the newest stays
                values |= {f"{EVALUATION}{result['suite']}/{key}": number for key, number in result["metrics"].items()}
        except Exception:  # a folder with unforeseen contents
            return {}
        return {key: text(value, 120) if isinstance(value, str) else value for key, value in values.items()}

    def columns(self) -> list[str]:
        """All configuration keys that differ between runs, and all evaluation metrics, by name."""
        seen: dict[str, Any] = {}
        differing = set()
        for row in self.table.rows()[1]:
            for key, value in self.of(row.name).items():
                if key.startswith(EVALUATION) or seen.setdefault(key, value) != value:
                    differing.add(key)
        return sorted(differing)[:5000]


def differences(values: dict[str, Values]) -> list[tuple[str, list[Any]]]:
    """The keys of the configuration whose values differ between runs, with the value of each run, None where it is missing."""
    keys = sorted({key for own in values.values() for key in own if not key.startswith(EVALUATION)})
    rows = [(key, [own.get(key) for own in values.values()]) for key in keys if key not in NOT_COMPARED]
    return [(key, row) for key, row in rows if any(value != row[0] for value in row)]


def group_labels(values: dict[str, Values], by: str) -> dict[str, str]:
    """The label of each run's group.

    Args:
        by: "" for a group a run; "seeds" for runs whose configurations differ in their seeds alone; else a key.
    """
    if not by:
        return {name: name for name in values}
    if by != "seeds":
        key = by.rpartition(".")[2]
        return {name: f"{key} {own.get(by, 'not set')}" for name, own in values.items()}
    grouped: dict[str, list[str]] = {}
    for name, own in values.items():
        compared = {key: value for key, value in own.items() if not key.startswith(EVALUATION) and not _is_seed(key)}
        grouped.setdefault(repr(sorted(compared.items(), key=lambda item: item[0])), []).append(name)
    return {name: _group_name(names) for names in grouped.values() for name in names}


def _is_seed(key: str) -> bool:
    return key in (*SEEDS, *NOT_COMPARED)


def _group_name(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
