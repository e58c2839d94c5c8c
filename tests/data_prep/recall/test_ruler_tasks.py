"""Tasks after RULER: readers that count and look up find the answers from the tokens alone."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from echo_lm.data_prep.recall import RecallVocabulary, generate, minimum_length, seeded_generator, task_of
from echo_lm.models.common.errors import UserError

V = RecallVocabulary(first_id=3, num_noise=90)


def make(task: str, *, length: int | None = None, sequences: int = 20, pairs: int = 4, **options):
    length = length or minimum_length(task, pairs=pairs, **options)
    generator = seeded_generator("test", task)
    batch = generate(
        task, sequences=sequences, length=length, pairs=pairs, generator=generator, vocabulary=V, **options
    )
    assert batch.tokens.shape == (sequences, length)
    assert (np.diff(batch.query_positions, axis=1) > 0).all()
    return batch


@pytest.mark.parametrize(("pairs", "length"), [(20, None), (50, 400), (60, 1000)])
def test_common_words_are_the_most_frequent_in_the_order_of_their_first_places(pairs, length):
    batch = make("cwe", pairs=pairs, length=length)
    for row, positions, answers in zip(
        batch.tokens.tolist(), batch.query_positions, batch.answers.tolist(), strict=True
    ):
        assert row[positions[0]] == V.query
        listed = row[: positions[0]]
        counts = Counter(listed)
        common = [word for word, _ in counts.most_common(10)]
        assert counts[common[-1]] >= 5 * max(n for word, n in counts.items() if word not in common)
        assert len(counts) == 10 + pairs
        assert answers == sorted(common, key=listed.index)
        assert row[positions[0] + 1 :] == answers[:-1]


@pytest.mark.parametrize(("pairs", "length", "top"), [(3, None, 3), (30, None, 3), (80, 600, 3), (20, 300, 5)])
def test_frequent_words_come_in_the_order_of_their_numbers(pairs, length, top):
    batch = make("fwe", pairs=pairs, length=length, top=top)
    for row, positions, answers in zip(
        batch.tokens.tolist(), batch.query_positions, batch.answers.tolist(), strict=True
    ):
        counts = Counter(row[: positions[0]]).most_common(top + 1)
        assert [word for word, _ in counts[:top]] == answers
        assert all(one[1] > other[1] for one, other in pairwise(counts))
        assert len(set(row[: positions[0]])) == pairs


def test_frequencies_fall_with_the_square_of_the_rank():
    counts = Counter(make("fwe", pairs=60, length=3000, sequences=1).tokens[0].tolist()).most_common(3)
    assert counts[0][1] / counts[1][1] == pytest.approx(4, abs=0.3)
    assert counts[0][1] / counts[2][1] == pytest.approx(9, abs=1)


@pytest.mark.parametrize(("pairs", "values", "mentions"), [(1, 4, 0.0), (3, 4, 0.1), (5, 1, 0.0), (4, 2, 0.2)])
def test_all_values_of_a_key_are_asked_in_their_order(pairs, values, mentions):
    batch = make("multivalue", pairs=pairs, values=values, mentions=mentions, length=200)
    for row, positions, answers in zip(batch.tokens.tolist(), batch.query_positions, batch.answers, strict=True):
        end = row.index(V.query)
        asked = positions.reshape(pairs, values)
        for places, wanted in zip(asked, answers.reshape(pairs, values).tolist(), strict=True):
            key = row[places[0]]
            stored = [row[i + 1] for i in range(end) if row[i] == key and row[i + 1] in V.values]
            assert stored == wanted
            assert row[places[0] - 1] == V.query
            assert [row[place] for place in places[1:]] == wanted[:-1]


@pytest.mark.parametrize("task", ["cwe", "fwe"])
def test_every_key_may_be_the_answer(task):
    batch = make(task, pairs=60, sequences=2000, length=400)
    counts = np.bincount(batch.answers[:, 0] - V.first_id, minlength=40)
    assert len(counts) == 40
    assert abs(counts - 50).max() < 6 * 50**0.5
    assert task_of(task).choices(V) == V.keys


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("cwe", {"pairs": 91}, "101 different words: the vocabulary has 100 keys and noise tokens"),
        ("fwe", {"pairs": 2, "length": 90}, "fwe: top is 3: from 1 to the number of words, 2"),
        ("multivalue", {"values": 0, "length": 90}, "multivalue: values is 0"),
        ("multivalue", {"values": 33, "length": 900}, "from 1 to 32"),
    ],
)
def test_what_cannot_be_is_one_line(task, options, message):
    with pytest.raises(UserError, match=message):
        make(task, **options)
