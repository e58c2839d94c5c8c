"""Copying: the passage at the start comes again at the end, token by token."""

import numpy as np
import pytest

from echo_lm.data_prep.recall import RecallVocabulary, check_room, generate, minimum_length, seeded_generator
from echo_lm.models.common.errors import UserError

V = RecallVocabulary(first_id=7)


@pytest.mark.parametrize(("pairs", "width", "queries", "extra"), [(8, 4, 8, 0), (3, 4, 2, 40), (5, 1, 5, 7)])
def test_every_answer_is_the_next_token_of_the_passage(pairs, width, queries, extra):
    length = minimum_length("copying", pairs=pairs, queries=queries, width=width) + extra
    batch = generate(
        "copying",
        sequences=6,
        length=length,
        pairs=pairs,
        queries=queries,
        width=width,
        vocabulary=V,
        generator=seeded_generator("copying"),
    )
    passage, copied = pairs * width, queries * width
    assert (batch.tokens[:, 0] == V.system).all()
    assert (batch.tokens[:, passage + 1] == V.end).all()
    assert np.isin(batch.tokens[:, 1 : passage + 1], V.values).all()
    assert np.isin(batch.tokens[:, passage + 2 : length - copied], V.noise).all()
    assert (batch.answers == batch.tokens[:, 1 : copied + 1]).all()
    asked = np.take_along_axis(batch.tokens, batch.query_positions, axis=1)
    assert (asked[:, 0] == V.query).all()
    assert (asked[:, 1:] == batch.answers[:, :-1]).all()
    assert batch.query_positions[0].tolist() == list(range(length - copied, length))


def test_tokens_repeat_so_that_one_alone_does_not_tell_the_next():
    batch = generate("copying", sequences=50, length=66, pairs=8, vocabulary=V, generator=seeded_generator("copying"))
    assert np.mean([len(set(row)) for row in batch.answers.tolist()]) < 24  # 32 draws from 32 values
    assert np.bincount(batch.answers.ravel() - V.values.start, minlength=32).min() > 20


def test_it_takes_no_keys_and_says_what_room_it_needs():
    few = RecallVocabulary(num_keys=1)
    check_room("copying", length=66, pairs=8, vocabulary=few)
    with pytest.raises(UserError, match="at least 66"):
        check_room("copying", length=65, pairs=8, vocabulary=few)
    with pytest.raises(UserError, match="width is 0"):
        generate("copying", sequences=1, length=9, pairs=1, width=0, vocabulary=V, generator=seeded_generator("a"))
