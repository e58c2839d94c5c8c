"""Recall sequences have one right answer, found by a reader that sees nothing but the tokens before each question."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lm.data_prep.recall import TASKS, RecallBatch, RecallVocabulary, generate, minimum_length, seeded_generator
from echo_lm.models.common.errors import UserError

OPTIONS = {
    "sysprompt": st.fixed_dictionaries({"decoys": st.integers(0, 6)}),
    "tooltrace": st.fixed_dictionaries({"overwrites": st.integers(0, 5)}),
    "mqar": st.just({}),
    "niah": st.fixed_dictionaries(
        {"depth": st.none() | st.floats(0, 1), "haystack": st.sampled_from(["seen", "unseen", "decoys"])}
    ),
}


@st.composite
def cells(draw: st.DrawFn) -> dict:
    task = draw(st.sampled_from(sorted(OPTIONS)))
    pairs = draw(st.integers(1, 12))
    queries = draw(st.integers(1, pairs))
    options = draw(OPTIONS[task])
    shortest = minimum_length(task, pairs=pairs, queries=queries, **options)
    length = shortest + draw(st.integers(0, 150))
    return {"task": task, "sequences": 3, "length": length, "pairs": pairs, "queries": queries, **options}


def make(cell: dict, seed: int, first_id: int = 0) -> RecallBatch:
    cell = dict(cell)
    vocabulary = RecallVocabulary(first_id)
    return generate(cell.pop("task"), generator=seeded_generator("test", seed), vocabulary=vocabulary, **cell)


def read(tokens: list[int], vocabulary: RecallVocabulary) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Answers by position, and the values stored under each key in order, from left to right."""
    answers: dict[int, int] = {}
    stored: dict[int, list[int]] = {}
    for position, token in enumerate(tokens):
        if token not in vocabulary.keys:
            continue
        following = [other for other in tokens[position + 1 : position + 3] if other != vocabulary.result]
        queried = tokens[position - 1] == vocabulary.query or not following or following[0] not in vocabulary.values
        if queried:
            assert position not in answers
            answers[position] = stored[token][-1]
        else:
            stored.setdefault(token, []).append(following[0])
    return answers, stored


@settings(max_examples=200, deadline=None)
@given(cell=cells(), seed=st.integers(0, 2**31), first_id=st.sampled_from([0, 2, 500]))
def test_one_right_answer_is_found_from_the_tokens_alone(cell: dict, seed: int, first_id: int) -> None:
    batch = make(cell, seed, first_id)
    vocabulary = RecallVocabulary(first_id)
    assert batch.tokens.shape == batch.labels.shape == batch.loss_mask.shape == (3, cell["length"])
    assert (batch.tokens.dtype, batch.labels.dtype, batch.loss_mask.dtype) == (np.int64, np.int64, np.float32)
    for n, row in enumerate(batch.tokens.tolist()):
        answers, stored = read(row, vocabulary)
        assert sorted(answers) == sorted(batch.query_positions[n].tolist())
        assert np.flatnonzero(batch.loss_mask[n]).tolist() == sorted(answers)
        assert all(batch.labels[n, position] == value for position, value in answers.items())
        assert np.array_equal(batch.labels[n, batch.query_positions[n]], batch.answers[n])
        assert not batch.labels[n][batch.loss_mask[n] == 0].any()
        assert len(answers) == cell["queries"]
        assert len({row[position] for position in answers}) == cell["queries"], "a key is asked once"
        if cell.get("haystack") == "decoys":
            assert all(len(stored[row[position]]) == 1 for position in answers), (
                "only keys that are never queried recur"
            )
        else:
            assert len(stored) == cell["pairs"] + cell.get("decoys", 0)
            assert sum(map(len, stored.values())) == len(stored) + cell.get("overwrites", 0)
    assert vocabulary.first_id <= batch.tokens.min()
    assert batch.tokens.max() < vocabulary.first_id + vocabulary.size


@settings(max_examples=50, deadline=None)
@given(cell=cells(), seed=st.integers(0, 2**31))
def test_the_answer_is_not_in_the_input_it_is_predicted_from(cell: dict, seed: int) -> None:
    batch = make(cell, seed)
    assert (np.take_along_axis(batch.tokens, batch.query_positions, axis=1) != batch.answers).all()
    for row, positions in zip(batch.tokens, batch.query_positions, strict=True):
        for position in positions:
            # An earlier question about the same key would have shown its answer.
            questions = np.flatnonzero(row[:position] == RecallVocabulary().query)
            assert row[position] not in row[questions[questions < position - 1] + 1]


@settings(max_examples=30, deadline=None)
@given(cell=cells(), seed=st.integers(0, 2**31))
def test_same_seed_same_sequences_and_no_global_state(cell: dict, seed: int) -> None:
    np.random.seed(5)  # noqa: NPY002 - the global generator is what must not matter
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = make(cell, seed)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(6)  # noqa: NPY002
    second = make(cell, seed)
    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.labels, second.labels)


@pytest.mark.parametrize("task", sorted(TASKS.keys() - {"cwe", "fwe", "zoology"}))  # no noise, or noise of all ids
def test_noise_is_neither_key_nor_value_and_unseen_noise_is_never_trained(task: str) -> None:
    vocabulary = RecallVocabulary()
    ranges = [vocabulary.keys, vocabulary.values, vocabulary.seen_noise, vocabulary.unseen_noise]
    assert sorted(i for ids in ranges for i in ids) == list(range(120))
    names = ("system", "end", "query", "call", "result", "mine", "trade", "build")
    assert {getattr(vocabulary, name) for name in names} == set(range(120, 128))
    batch = make({"task": task, "sequences": 500, "length": 100, "pairs": 2}, 0)
    assert not np.isin(batch.tokens, vocabulary.unseen_noise).any()
    assert np.isin(vocabulary.seen_noise, batch.tokens).all() or task == "commonword"


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_minimum_length_fits_and_one_less_is_refused_with_the_minimum(task: str) -> None:
    shortest = minimum_length(task, pairs=5)
    batch = make({"task": task, "sequences": 2, "length": shortest, "pairs": 5}, 0)
    if task != "economy":  # its sequences draw their number of steps
        assert not np.isin(batch.tokens, RecallVocabulary().noise).any(), "no room is wasted"
    with pytest.raises(UserError, match=f"too short for 5 pairs: at least {shortest}$"):
        make({"task": task, "sequences": 2, "length": shortest - 1, "pairs": 5}, 0)


def test_keys_values_and_queries_are_uniform() -> None:
    batch = make({"task": "sysprompt", "sequences": 20_000, "length": 64, "pairs": 4, "queries": 1}, 0)
    keys = np.bincount(batch.tokens[:, -1], minlength=40)
    values = np.bincount(batch.answers[:, 0] - 40, minlength=32)
    assert len(keys) == 40
    assert len(values) == 32
    # Six standard deviations of a binomial count.
    assert abs(keys - 500).max() < 6 * np.sqrt(500)
    assert abs(values - 625).max() < 6 * np.sqrt(625)
    place = np.argmax(batch.tokens[:, 1:9:2] == batch.tokens[:, -1:], axis=1)
    assert abs(np.bincount(place, minlength=4) - 5000).max() < 6 * np.sqrt(5000)


def test_a_system_prompt_is_closed_and_decoys_come_after_it() -> None:
    vocabulary = RecallVocabulary()
    shortest = minimum_length("sysprompt", pairs=3, decoys=4)
    for length in (shortest, shortest + 1, shortest + 30):
        tokens = make({"task": "sysprompt", "sequences": 50, "length": length, "pairs": 3, "decoys": 4}, 0).tokens
        assert (tokens[:, 0] == vocabulary.system).all()
        assert (tokens[:, 7] == vocabulary.end).all()
        prompt, gap = tokens[:, :8], tokens[:, 8:-8]
        assert (np.isin(prompt, vocabulary.keys).sum(axis=1) == 3).all()
        assert (np.isin(gap, vocabulary.keys).sum(axis=1) == 4).all()


GOLDEN = {
    ("sysprompt", ()): "32bd6a9cb0a5f696",
    ("sysprompt", (("decoys", 3),)): "dd57856ebd234782",
    ("tooltrace", ()): "debd4c438563f2b2",
    ("tooltrace", (("overwrites", 3),)): "2590f248bd247fc7",
}


@pytest.mark.parametrize(("task", "options"), GOLDEN)
def test_what_runs_were_trained_on_stays_what_it_was(task: str, options: tuple) -> None:
    """Hashes of November 2026: published results name a seed, and these sequences are what it means."""
    generator = seeded_generator("training", "golden")
    batch = generate(
        task, sequences=50, length=96, pairs=4, generator=generator, vocabulary=RecallVocabulary(2), **dict(options)
    )
    parts = (batch.tokens, batch.labels, batch.loss_mask)
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    assert digest.startswith(GOLDEN[task, options])


def test_overwritten_keys_answer_with_their_latest_value() -> None:
    batch = make({"task": "tooltrace", "sequences": 200, "length": 200, "pairs": 3, "overwrites": 9}, 0)
    histories = [read(row, RecallVocabulary())[1] for row in batch.tokens.tolist()]
    changed = [values for stored in histories for values in stored.values() if values[0] != values[-1]]
    assert len(changed) > 300, "the first value is usually wrong, so the latest one is what is tested"


@pytest.mark.parametrize("depth", [0.0, 0.25, 1.0])
def test_needles_lie_at_the_depth_asked_for(depth: float) -> None:
    batch = make({"task": "niah", "sequences": 4, "length": 1005, "pairs": 1, "depth": depth}, 0)
    position = np.argmax(np.isin(batch.tokens, RecallVocabulary().keys), axis=1)
    assert (position == round(depth * 1001)).all()


def test_scattered_needles_reach_both_ends() -> None:
    batch = make({"task": "niah", "sequences": 2_000, "length": 52, "pairs": 1}, 0)
    position = np.argmax(np.isin(batch.tokens, RecallVocabulary().keys), axis=1)
    assert set(position) == set(range(49))


def test_training_and_evaluation_share_no_sequence() -> None:
    cell = ("niah", 64, 1, 0)
    seen = set()
    for purpose in ("training", "evaluation"):
        generator = seeded_generator(purpose, *cell)
        made = generate("niah", sequences=5_000, length=64, pairs=1, generator=generator, vocabulary=RecallVocabulary())
        seen |= {row.tobytes() for row in made.tokens}
    assert len(seen) == 10_000


def test_seeds_depend_on_every_part() -> None:
    parts = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a", 1, 0), ("a1",)]
    assert len({seeded_generator(*part).integers(2**62) for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sysprmpt"}, "did you mean 'sysprompt'"),
        ({"pairs": 41, "length": 400}, "41 distinct keys: the vocabulary has 40"),
        ({"decoys": 39}, "43 distinct keys: the vocabulary has 40"),
        ({"queries": 5}, "5 queries of 4 pairs"),
        ({"queries": 0}, "0 queries of 4 pairs"),
        ({"depth": 0.5}, "has no option 'depth': it has decoys"),
        ({"task": "niah", "depth": 1.5}, "depth is 1.5"),
        ({"task": "niah", "haystack": "grass"}, "choose one of seen, unseen, new, decoys, text"),
        ({"task": "niah", "haystack": "text"}, "needs text"),
        ({"task": "multihop", "pairs": 21}, "42 distinct keys"),
        ({"task": "multihop", "hops": 0}, "at least one link"),
        ({"task": "commonword", "pairs": 33}, "vocabulary has 32"),
        ({"task": "commonword", "queries": 2}, "from 1 to 1 can be asked"),
        ({"task": "economy", "steps": (5, 4)}, "the fewest"),
        ({"task": "variables", "variables": 0}, "at least one"),
        ({"task": "nowhere/mine.py"}, "does not exist"),
    ],
)
def test_a_wrong_cell_is_one_clear_line(changes: dict, message: str) -> None:
    cell = {"task": "sysprompt", "sequences": 1, "length": 300, "pairs": 4, **changes}
    with pytest.raises(UserError, match=message) as caught:
        make(cell, 0)
    assert "\n" not in str(caught.value)


def test_a_million_tokens() -> None:
    batch = make({"task": "niah", "sequences": 1, "length": 2**20, "pairs": 8, "depth": 0.0}, 0)
    assert batch.tokens.shape == (1, 2**20)
    assert sorted(batch.tokens[0, :16:2]) == sorted(batch.tokens[0, batch.query_positions[0]])


def test_counts_need_a_value_each():
    few = RecallVocabulary(num_values=7)
    with pytest.raises(UserError, match="economy: counts from 0 to 7 are written as values: the vocabulary has 7"):
        generate("economy", sequences=1, length=90, pairs=2, generator=seeded_generator("test"), vocabulary=few)
