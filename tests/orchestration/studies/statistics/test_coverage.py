"""A short sample of the coverage table of docs/guides/studies.md (`python -m benchmarks.studies.coverage`)."""

from itertools import starmap

import numpy as np
import pytest

from benchmarks.studies import coverage


class Here:
    """In place of a pool of processes."""

    @staticmethod
    def starmap(function, arguments, chunksize):
        return list(starmap(function, arguments))


def shares(row: str, replications: int) -> dict[str, np.ndarray]:
    """Share of 95 and 80% intervals that hold the truth, by quantity."""
    found = coverage.coverage(row, replications, Here())
    return {result["quantity"]: np.array(result["covered_all"]) for result in found}


@pytest.mark.parametrize(
    ("row", "replications", "least"),
    [
        ("IsoFLOP, 4 sizes x 3 costs, noise 0.5%", 150, (0.89, 0.69)),
        ("IsoFLOP, 7 sizes x 3 costs, noise 0.5%", 150, (0.89, 0.69)),
        ("12 cells, noise 0.5%", 10, (0.7, 0.4)),
        ("12 cells x 3 seeds, misfit 1.0% shared, seeds 0.5%", 10, (0.7, 0.4)),
        ("12 cells, one +10%, noise 0.5%", 10, (0.7, 0.4)),
        ("recall, 12 models, scatter 0.5", 12, (0.7, 0.4)),
    ],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(row, replications, least):
    """Bounds that a right interval misses once in several hundred times; 50 to 70% of the 95% ones were found before."""
    for quantity, held in shares(row, replications).items():
        assert (held >= least).all(), quantity


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("row", coverage.rows())
def test_the_whole_table(row):
    with coverage.multiprocessing.Pool() as pool:
        for result in coverage.coverage(row, 200, pool):
            if result["warned"] < 0.5:
                assert result["covered"][0] > 0.9, result
                assert result["covered"][1] > 0.7, result


def test_a_table_is_written_in_markdown():
    results = coverage.coverage("IsoFLOP, 4 sizes x 3 costs, noise 0.5%", 5, Here())
    lines = coverage.markdown(results).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| IsoFLOP, 4 sizes x 3 costs, noise 0.5% | log best size |")
