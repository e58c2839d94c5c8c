"""Differences of two models on the same parts: exact values, and intervals that are narrower for what both find hard."""

import math

import numpy as np
import pytest

from echo_lm.evals.differences import accuracy_difference, are_paired, bits_per_byte_difference


def row(correct, queries_each=4):
    return {"queries": queries_each * len(correct), "correct_by_sequence": [int(value) for value in correct]}


def test_the_difference_in_accuracy_is_exact_and_its_interval_is_that_of_the_pairs():
    generator = np.random.default_rng(1)
    first = generator.choice([0, 4], size=400)  # half of the sequences are hard for both
    second = np.minimum(4, first + (generator.random(400) < 0.2))
    found = accuracy_difference(row(first), row(second))
    assert found.value == pytest.approx((second - first).mean() / 4)
    # Normal theory of the paired difference: 400 parts are enough for it.
    deviation = ((second - first) / 4).std(ddof=1) / math.sqrt(400)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * deviation, found.value + 1.96 * deviation), abs=2e-3
    )
    unpaired = math.sqrt((first / 4).var() / 400 + (second / 4).var() / 400)
    assert found.high - found.low < 0.3 * 2 * 1.96 * unpaired


def test_the_interval_holds_the_true_difference_in_19_of_20_cases():
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(60):
        first, second = generator.binomial(1, 0.5, 150), generator.binomial(1, 0.6, 150)
        found = accuracy_difference(row(first, 1), row(second, 1))
        held += found.low <= 0.1 <= found.high
    assert 53 <= held <= 60


def test_bits_per_byte_are_weighed_by_the_bytes_of_each_batch():
    first = {"nats": [10.0, 20.0, 30.0, 41.0], "bytes": [10, 20, 30, 40]}
    second = first | {"nats": [9.0, 19.0, 29.0, 39.0]}
    found = bits_per_byte_difference(first, second)
    assert found.value == pytest.approx(-5 / math.log(2) / 100)
    assert found.low < found.value < found.high < 0
    same = bits_per_byte_difference(first, first)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_what_is_not_of_the_same_parts_is_not_compared():
    whole = {"suite_sha256": "a", "dataset_sha256": "b", "seed": 0, "adapted": False}
    assert are_paired(whole, dict(whole))
    assert not are_paired(whole, whole | {"dataset_sha256": "c"})
    assert not are_paired({}, {})
    assert accuracy_difference({"queries": 8}, row([1, 2])) is None
    assert accuracy_difference(row([1, 2]), row([1, 2, 3])) is None
    assert accuracy_difference(row([1, 2]) | {"queries": 0}, row([1, 2])) is None
    for odd in (["x", 1], [1, float("nan")], [1], "text", [1, 1e301], {"a": 1}):
        assert accuracy_difference(row([1, 2]) | {"correct_by_sequence": odd}, row([1, 2])) is None, odd
    text = {"nats": [1.0, 2.0], "bytes": [3, 4]}
    assert bits_per_byte_difference(text, text | {"bytes": [3, 5]}) is None
    assert bits_per_byte_difference(text | {"nats": [1.0]}, text) is None
    assert bits_per_byte_difference(text | {"bytes": [0, 0]}, text | {"bytes": [0, 0]}) is None
