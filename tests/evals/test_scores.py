"""Scores against numbers worked out by hand, or by another way."""

import gzip
import math

import numpy as np
import pytest

from echo_lm.evals.scores import accuracy, bits_per_byte, gzip_bits_per_byte, perplexity, unigram_nats


@pytest.mark.parametrize(("correct", "queries"), [(0, 10), (7, 10), (10, 10), (931, 1000)])
def test_interval_is_wilsons(correct, queries):
    """The interval's ends are where |p - p0| is 1.96 standard errors of p0."""
    score = accuracy(correct, queries, chance=1 / 32)
    for end in (score["low"], score["high"]):
        if 0 < end < 1:
            standard_error = math.sqrt(end * (1 - end) / queries)
            assert abs(correct / queries - end) == pytest.approx(1.959964 * standard_error, rel=1e-5)
    assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
    assert (score["queries"], score["correct"], score["chance"]) == (queries, correct, 1 / 32)


@pytest.mark.parametrize(("correct", "queries"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_refused(correct, queries):
    with pytest.raises(ValueError, match="not a share"):
        accuracy(correct, queries, chance=0.5)


def test_a_byte_predicted_uniformly_costs_eight_bits():
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)
    assert perplexity(100 * math.log(256), 100) == pytest.approx(256)
    assert perplexity(1e6, 1) == math.inf


def test_unigram_is_add_one_smoothed():
    counts = np.array([3, 0, 1])  # smoothed 4/7, 1/7, 2/7
    assert unigram_nats(counts, np.array([0, 1, 2, 2])) == pytest.approx(-math.log(4 / 7 * 1 / 7 * (2 / 7) ** 2))


def test_gzip_counts_the_compressed_bytes():
    text = b"to be or not to be, " * 50
    assert gzip_bits_per_byte(text) == 8 * len(gzip.compress(text, 9)) / len(text)
    assert gzip_bits_per_byte(text) < 1 < gzip_bits_per_byte(np.random.default_rng(0).bytes(1000))
