"""Keys that occur without their value: the answer stays unambiguous; and noise of several kinds."""

import numpy as np
import pytest

from echo_lm.data_prep.recall import RecallVocabulary, generate, minimum_length, seeded_generator
from echo_lm.data_prep.recall.noise import MANY, NOISE_KINDS, draw_noise
from echo_lm.data_prep.recall.sequences import scatter_with_mentions
from echo_lm.models.common.errors import UserError

VOCABULARY = RecallVocabulary(num_new_noise=12)
KEYS, VALUES = np.array(VOCABULARY.keys), np.array(VOCABULARY.values)


def make(task: str, **options):
    cell = {"sequences": 40, "length": 300, "pairs": 3, **options}
    return generate(task, generator=seeded_generator("test", task), vocabulary=VOCABULARY, **cell)


def test_units_and_mentions_by_hand():
    """Two units of three tokens and a mention in a space that holds nothing else have two places each to be in."""
    found = set()
    for seed in range(50):
        tokens = np.full((1, 10), 9)
        units = np.array([[[1, 2, 3], [4, 5, 6]]])
        scatter_with_mentions(tokens, units, np.array([[7]]), 8, 0.5, seeded_generator("test", seed), first=1)
        found.add(tuple(tokens[0].tolist()))
    assert found == {
        (9, 7, 9, 1, 2, 3, 4, 5, 6, 9),
        (9, 1, 2, 3, 7, 9, 4, 5, 6, 9),
        (9, 1, 2, 3, 4, 5, 6, 7, 9, 9),
    }


@pytest.mark.parametrize(
    ("task", "options", "writes"),
    [
        ("niah", {}, 3),
        ("niah", {"haystack": "unseen"}, 3),
        ("sysprompt", {"decoys": 2}, 5),
        ("tooltrace", {"overwrites": 2}, 5),
        ("multihop", {}, 6),
    ],
)
def test_a_mentioned_key_is_followed_by_noise_and_every_pair_stands_once(task, options, writes):
    plain, batch = make(task, **options), make(task, mentions=0.1, **options)
    for tokens, without in zip(batch.tokens, plain.tokens, strict=True):
        end = int(np.argmax(tokens == VOCABULARY.query))
        is_key = np.isin(tokens[:end], KEYS)
        before = np.isin(without[:end], KEYS)
        is_mention = is_key & np.isin(np.append(tokens[1:end], tokens[end]), VOCABULARY.noise)
        room = 300 - minimum_length(task, pairs=3, queries=3, **options)
        assert is_key.sum() - before.sum() == int(0.1 * room)
        if task != "multihop":  # there a key ends a link
            assert is_mention.sum() == int(0.1 * room)
        assert np.isin(tokens[:end], VALUES).sum() == (3 if task == "multihop" else writes)
        asked = tokens[batch.query_positions[0]]
        assert set(tokens[:end][is_mention]) & set(asked), "what is asked is mentioned"


def test_the_answer_with_mentions_is_what_followed_the_key_last():
    for task, width in (("niah", 1), ("sysprompt", 1), ("tooltrace", 2)):
        batch = make(task, mentions=0.2, **({"overwrites": 4} if task == "tooltrace" else {}))
        for tokens, positions, answers in zip(batch.tokens, batch.query_positions, batch.answers, strict=True):
            end = int(np.argmax(tokens == VOCABULARY.query))
            for position, answer in zip(positions, answers, strict=True):
                at = np.flatnonzero(tokens[: end - width] == tokens[position])
                followed = [tokens[i + width] for i in at if tokens[i + width] in VALUES]
                assert followed[-1] == answer


def test_text_holds_mentions_too():
    text = np.arange(1000, 2000)
    batch = make("niah", haystack="text", mentions=0.1, text=text)
    assert (np.isin(batch.tokens, KEYS).sum(1) == 3 + 3 + int(0.1 * (300 - 14))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mentions": 0.6}, "mentions is 0.6: it is a share of the noise, from 0 to 0.5"),
        ({"mentions": -0.1}, "mentions is -0.1"),
        ({"mentions": 0.1, "depth": 0.5}, "leave out depth and decoys"),
        ({"mentions": 0.1, "haystack": "decoys"}, "leave out depth and decoys"),
        ({"noise": "white"}, "noise is 'white': choose one of uniform, zipf"),
    ],
)
def test_what_cannot_be_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make("niah", **options)


def test_new_noise_needs_ids_of_its_own_and_is_in_nothing_else():
    batch = make("niah", haystack="new", noise="walk")
    noise = batch.tokens[~np.isin(batch.tokens, [*KEYS, *VALUES, VOCABULARY.query])]
    assert np.isin(noise, VOCABULARY.new_noise).all()
    assert VOCABULARY.new_noise.start == 128
    assert VOCABULARY.size == 140
    with pytest.raises(UserError, match="num_new_noise"):
        generate("niah", sequences=1, length=50, pairs=1, generator=seeded_generator("test"),
                 vocabulary=RecallVocabulary(), haystack="new")  # fmt: skip


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_stays_in_its_range_and_has_its_kind(kind):
    tokens = draw_noise(range(100, 140), (300, 200), seeded_generator("test", kind), kind)
    assert tokens.shape == (300, 200)
    assert tokens.min() >= 100
    assert tokens.max() < 140
    repeats = (tokens[:, 1:] == tokens[:, :-1]).mean()
    different = np.mean([len(set(row)) for row in tokens.tolist()])
    counts = np.sort(np.bincount(tokens[0] - 100, minlength=40))[::-1]
    facts = {
        "uniform": repeats < 0.04 and different > 38,
        "zipf": counts[0] > 4 * counts[10] and different > 30,
        "runs": 0.6 < repeats < 0.75,
        "phrases": 4 < different < 16,
        "few": 3 < different < 6,
        "many": len(MANY) == 5 and 0.1 < repeats < 0.5,
        "walk": (np.isin((tokens[:, 1:] - tokens[:, :-1]) % 40, [0, 1, 2, 3, 37, 38, 39])).all(),
    }
    assert facts[kind]
