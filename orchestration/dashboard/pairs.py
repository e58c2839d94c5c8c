"""The differences of two runs at their newest evaluated checkpoints, with intervals."""

from pathlib import Path
from typing import Any

from ...evals.differences import accuracy_difference, are_paired, bits_per_byte_difference
from ...evals.layout import is_of_average, result_path
from ...models.common.cached_files import is_inside, read_json_if_whole
from ...models.common.run_layout import checkpoint_name
from ...pipeline.run.reader import RunReader
from ...pipeline.run.untrusted import text

MOST_ROWS = 200
MOST_TEXTS = 40

Row = dict[str, Any]


def accuracy_differences(first: Path, second: Path) -> list[Row]:
    """Second minus first accuracy of each recall task at each length that both were evaluated on.

    With a 95% interval: of the paired bootstrap over sequences where both results have their answers and are of the same suite and
    dataset; else that of the difference of two proportions (Newcombe 1998, his method 10), which takes all queries for independent.
    `paired` says which.
    """
    one, two = _Newest(first), _Newest(second)
    rows = []
    for key in sorted(one.rows.keys() & two.rows.keys())[:MOST_ROWS]:
        suite, label, length = key
        a, b = one.rows[key], two.rows[key]
        found = (
            accuracy_difference(one.stored_row(*key), two.stored_row(*key)) if _are_paired(one, two, suite) else None
        )
        low, high = (found.low, found.high) if found else _newcombe(a, b)
        rows.append(
            {"suite": suite, "label": label, "length": length, "first": a["accuracy"], "second": b["accuracy"]}
            | {"difference": b["accuracy"] - a["accuracy"], "low": low, "high": high, "paired": found is not None}
        )
    return rows


def text_differences(first: Path, second: Path) -> list[Row]:
    """Second minus first bits per byte of each held-out text, with the interval of the paired bootstrap over batches of it."""
    one, two = _Newest(first), _Newest(second)
    rows = []
    for suite in sorted(one.results.keys() & two.results.keys()):
        if not _are_paired(one, two, suite):
            continue
        texts = two.texts(suite)
        for source, row in one.texts(suite).items():
            if source in texts and (found := bits_per_byte_difference(row, texts[source])):
                label = source or "all sources"
                rows.append(
                    {"suite": suite, "label": label, "difference": found.value, "low": found.low, "high": found.high}
                )
    return rows[:MOST_TEXTS]


class _Newest:
    """The newest result of each suite of a run.

    Attributes:
        results: by suite, as `RunReader.results` cleans them.
        rows: by suite, label and length.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.results = {
            result["suite"]: result for result in RunReader(folder).results() if not is_of_average(result["suite"])
        }
        self.rows = {
            (suite, row["label"], row["length"]): row
            for suite, result in self.results.items()
            for row in result["rows"]
            if row["length"] and (row["queries"] or 0) > 0 and 0 <= row["accuracy"] <= 1
        }

    def stored(self, suite: str) -> Row:
        """The result as its file has it, which is not checked."""
        path = result_path(self._folder, checkpoint_name(self.results[suite]["step"]), suite)
        return (read_json_if_whole(path) if is_inside(path, self._folder) else None) or {}

    def stored_row(self, suite: str, label: str, length: int) -> Row:
        """The row of a recall cell."""
        rows = _mappings(self.stored(suite).get("rows"))
        return next((row for row in rows if (row.get("label"), row.get("length")) == (label, length)), {})

    def texts(self, suite: str) -> dict[str, Row]:
        """The rows of held-out texts by source; "" is that of all sources."""
        return {text(row.get("source"), 80): row for row in _mappings(self.stored(suite).get("language"))}


def _are_paired(one: _Newest, two: _Newest, suite: str) -> bool:
    return are_paired(one.stored(suite), two.stored(suite))


def _mappings(values: Any) -> list[Row]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _newcombe(a: Row, b: Row) -> tuple[float, float]:
    from statsmodels.stats.proportion import confint_proportions_2indep  # takes a second

    counts = round(b["accuracy"] * b["queries"]), b["queries"], round(a["accuracy"] * a["queries"]), a["queries"]
    low, high = confint_proportions_2indep(*counts, method="newcomb", compare="diff")
    return float(low), float(high)
