"""Differences between two models evaluated on the same sequences and text, with confidence intervals by the paired bootstrap.

Models that are evaluated by one suite on one dataset answer the same questions, so their difference is taken part by part: what is
hard for both then widens no interval. The parts are sequences of a recall task (queries of one sequence are not independent)
and batches of text.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
MOST_GROUPS = 250  # of parts that are resampled together, so that a page of many tasks takes a second
MOST_PARTS = 1_000_000
SAME = ("suite_sha256", "dataset_sha256", "seed", "adapted")


@dataclass(frozen=True)
class Difference:
    """The difference, second minus first model: `value`, and its 95% interval from `low` to `high`."""

    value: float
    low: float
    high: float


def are_paired(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two result files hold the same measurements on the same data, so that they can be paired."""
    return all(key in first and first[key] == second.get(key) for key in SAME)


def accuracy_difference(first: dict[str, Any], second: dict[str, Any]) -> Difference | None:
    """The difference in accuracy of two result rows of one recall cell; None if a row lacks its counts by sequence."""
    ours, theirs = (_numbers(row.get("correct_by_sequence")) for row in (first, second))
    queries = first.get("queries")
    if ours is None or theirs is None or len(ours) != len(theirs) or type(queries) is not int or queries <= 0:
        return None
    return _difference(ours, theirs, np.full(len(ours), queries / len(ours)))


def bits_per_byte_difference(first: dict[str, Any], second: dict[str, Any]) -> Difference | None:
    """The difference in bits per byte of two result rows of one text; None if they are not of the same batches."""
    nats = [_numbers(row.get("nats")) for row in (first, second)]
    sizes = _numbers(first.get("bytes"))
    if nats[0] is None or nats[1] is None or sizes is None or first.get("bytes") != second.get("bytes"):
        return None
    if not len(nats[0]) == len(nats[1]) == len(sizes) or sizes.min() < 0 or sizes.sum() <= 0:
        return None
    return _difference(nats[0] / math.log(2), nats[1] / math.log(2), sizes)


def _numbers(values: Any) -> np.ndarray | None:
    """A list of at least two finite numbers; None for anything else."""
    if not isinstance(values, list) or not 2 <= len(values) <= MOST_PARTS:
        return None
    if not all(type(value) in (int, float) and abs(value) < 1e300 for value in values):
        return None
    return np.array(values, dtype=float)


def _difference(first: np.ndarray, second: np.ndarray, sizes: np.ndarray) -> Difference:
    """sum(second - first) / sum(sizes), with the percentile interval of the paired bootstrap over the parts.

    Efron and Tibshirani 1993, chapter 13. Of more than 250 parts neighbours are resampled together.
    """
    from scipy.stats import bootstrap  # a second, where nothing else needs it

    begins = np.arange(0, len(sizes), -(-len(sizes) // MOST_GROUPS))
    groups = np.add.reduceat(second - first, begins), np.add.reduceat(sizes, begins)

    def statistic(gain: np.ndarray, size: np.ndarray, axis: int) -> np.ndarray:
        return gain.sum(axis=axis) / size.sum(axis=axis)

    found = bootstrap(
        groups,
        statistic,
        paired=True,
        n_resamples=RESAMPLES,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = found.confidence_interval
    return Difference(float(statistic(*groups, axis=-1)), float(low), float(high))
