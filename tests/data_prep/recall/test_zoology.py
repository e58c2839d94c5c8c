"""Zoology's form of MQAR: keys and values first, queries at even places that follow a power law, noise from all ids."""

import numpy as np
import pytest

from echo_lm.data_prep.recall import RecallVocabulary, generate, seeded_generator

VOCABULARY = RecallVocabulary(num_keys=400, num_values=400, num_noise=3)
CELL = dict(sequences=400, length=96, pairs=12, vocabulary=VOCABULARY)


@pytest.mark.parametrize("queries", [12, 5])
def test_every_answer_is_the_value_of_the_queried_key(queries):
    batch = generate("zoology", **CELL, queries=queries, generator=seeded_generator("zoology"))
    keys, values = batch.tokens[:, :24:2], batch.tokens[:, 1:24:2]
    assert np.isin(keys, VOCABULARY.keys).all()
    assert np.isin(values, VOCABULARY.values).all()
    assert all(len({*row}) == 12 for row in [*keys, *values])
    queried = np.take_along_axis(batch.tokens, batch.query_positions, axis=1)
    which = (queried[:, :, None] == keys[:, None]).argmax(2)
    assert (np.take_along_axis(keys, which, 1) == queried).all()
    assert (np.take_along_axis(values, which, 1) == batch.answers).all()
    assert all(len({*row}) == queries for row in queried)
    assert (batch.query_positions % 2 == 0).all()
    assert (np.diff(batch.query_positions, axis=1) > 0).all()
    assert batch.query_positions.min() == 24
    assert batch.query_positions.max() == 94


def test_places_follow_the_power_law():
    """With one query, place i has the probability a i^(a - 1) / sum; the first ones are by far the most frequent."""
    cell = CELL | dict(pairs=1, sequences=20_000)
    places = (generate("zoology", **cell, generator=seeded_generator("law")).query_positions[:, 0] - 2) // 2
    expected = np.arange(1, 48) ** (0.01 - 1.0)
    share = np.bincount(places, minlength=47) / len(places)
    assert np.abs(share - expected / expected.sum()).max() < 0.01
    even = generate("zoology", **cell, exponent=1.0, generator=seeded_generator("law")).query_positions
    assert np.abs(np.bincount((even[:, 0] - 2) // 2) / len(even) - 1 / 47).max() < 0.01


def test_noise_shares_ids_with_keys_and_values():
    batch = generate("zoology", **CELL, queries=1, generator=seeded_generator("noise"))
    rest = batch.tokens[:, 25::2]
    assert 0.4 < np.isin(rest, VOCABULARY.keys).mean() < 0.6
    assert np.isin(rest, VOCABULARY.values).mean() > 0.4
