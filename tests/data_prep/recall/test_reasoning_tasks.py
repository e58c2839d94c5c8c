"""Tasks whose answer is not written beside the key: solvers that read the tokens alone find the one right answer."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lm.data_prep.recall import TASKS, RecallBatch, RecallVocabulary, generate, minimum_length, seeded_generator
from echo_lm.models.common.errors import UserError

V = RecallVocabulary(first_id=7)


def make(task: str, *, sequences: int = 3, extra: int = 0, pairs: int = 3, seed: int = 0, **options) -> RecallBatch:
    length = minimum_length(task, pairs=pairs, **options) + extra
    generator = seeded_generator("test", seed)
    return generate(task, sequences=sequences, length=length, pairs=pairs, generator=generator, vocabulary=V, **options)


def solve_multihop(row: list[int], positions: list[int]) -> list[int]:
    """Read links left to right, two tokens at a time wherever there is no noise; then follow them."""
    link, at = {}, 0
    while at < positions[0] - 1:
        if row[at] in V.keys:
            assert row[at] not in link
            link[row[at]] = row[at + 1]
            at += 1
        at += 1
    answers = []
    for position in positions:
        token = row[position]
        while token in V.keys:
            token = link[token]
        answers.append(token)
    return answers


def solve_commonword(row: list[int], positions: list[int]) -> list[int]:
    (first, count), *others = Counter(row[:-1]).most_common(2)
    assert all(count > other for _, other in others)
    return [first]


def solve_economy(row: list[int], positions: list[int]) -> list[int]:
    """Play the history; every step must be possible."""
    has: Counter = Counter()
    at = 0
    while at < len(row) - 3:
        if row[at] not in V.keys:
            assert row[at] in V.noise
            at += 1
            continue
        agent, action, resource, last = row[at : at + 4]
        if action == V.mine:
            has[agent, resource] += last - V.values.start
        elif action == V.build:
            has[agent, resource] -= last - V.values.start
        else:
            assert action == V.trade
            assert last != agent
            has[agent, resource] -= 1
            has[last, resource] += 1
        assert all(0 <= count <= 7 for count in has.values())
        at += 4
    query, agent, resource = row[-3:]
    assert query == V.query
    assert (agent, resource) in has, "a store that no step named is not asked"
    return [V.values.start + has[agent, resource]]


def solve_variables(row: list[int], positions: list[int]) -> list[int]:
    """Assign in order; the variables that hold the asked value, in the order they got it."""
    holds: dict[int, int] = {}
    at = 0
    answers: list[int] = []
    while at < len(row):
        if row[at] == V.query:
            found = [name for name, value in holds.items() if value == row[at + 1]]
            assert row[at + 2 : at + 2 + 2 * len(found) : 2] == found[: len(row[at + 2 :: 2])]
            answers += found
            at += 1 + 2 * len(found)
        elif row[at] in V.keys:
            name, equals, source = row[at : at + 3]
            assert equals == V.result
            assert name not in holds
            holds[name] = holds[source] if source in V.keys else source
            at += 3
        else:
            at += 1
    return answers


SOLVERS = {
    "multihop": (solve_multihop, st.fixed_dictionaries({"hops": st.integers(1, 3)})),
    "commonword": (solve_commonword, st.just({})),
    "economy": (solve_economy, st.sampled_from([{}, {"steps": (1, 2)}, {"steps": (40, 60)}])),
    "variables": (solve_variables, st.fixed_dictionaries({"variables": st.integers(1, 4)})),
}


def test_every_task_has_a_solver() -> None:
    elsewhere = {
        "sysprompt",
        "tooltrace",
        "mqar",
        "niah",
        "cwe",
        "fwe",
        "multivalue",
        "zoology",
        "copying",
    }  # test_tasks.py, test_ruler_tasks.py, test_zoology.py, test_copying.py
    assert set(SOLVERS) | elsewhere == set(TASKS)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), pairs=st.integers(1, 8), extra=st.integers(0, 100), seed=st.integers(0, 2**31))
def test_a_solver_that_sees_the_tokens_alone_finds_the_answers(data, pairs: int, extra: int, seed: int) -> None:
    task = data.draw(st.sampled_from(sorted(SOLVERS)))
    solver, options = SOLVERS[task]
    options = data.draw(options)
    batch = make(task, pairs=pairs, extra=extra, seed=seed, **options)
    choices = TASKS[task].choices(V)
    for row, positions, answers in zip(batch.tokens, batch.query_positions, batch.answers, strict=True):
        assert solver(row.tolist(), positions.tolist()) == answers.tolist()
        assert set(answers.tolist()) <= set(choices)
        assert not set(row[positions].tolist()) & set(choices), "where it answers, a model does not see a choice"
    assert batch.labels[0, batch.query_positions[0, -1]] == batch.answers[0, -1]
    assert batch.loss_mask.sum() == batch.answers.size


@pytest.mark.parametrize("task", sorted(SOLVERS))
def test_a_constant_guess_is_right_as_often_as_chance_says(task: str) -> None:
    batch = make(task, sequences=8000, pairs=4, extra=20)
    choices = TASKS[task].choices(V)
    counts = np.bincount(batch.answers[:, 0] - choices.start, minlength=len(choices))
    expected = len(batch.answers) / len(choices)
    assert len(counts) == len(choices)
    assert abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_decoys_fill_the_haystack_and_text_is_text() -> None:
    batch = make("niah", pairs=2, extra=101, haystack="decoys")
    hay = batch.tokens[:, :-5]
    assert np.isin(hay[:, 0:-1:2], V.keys).all()
    assert np.isin(hay[:, 1::2], V.values).all()
    text = np.arange(1000, 1050)
    generator = seeded_generator("test", 1)
    found = generate(
        "niah",
        sequences=4,
        length=200,
        pairs=1,
        generator=generator,
        vocabulary=V,
        haystack="text",
        text=text,
        depth=0.5,
    ).tokens
    assert (np.isin(found, text).sum(axis=1) == 200 - 4).all()
    place = np.flatnonzero(~np.isin(found[0], text))[0]
    assert place == round(0.5 * (198 - 2))
    assert ((np.diff(found[0, :place]) == 1) | (found[0, 1:place] == 1000)).all(), (
        "consecutive text, from a random place"
    )
    assert len(set(found[:, 0])) > 1
    cell = dict(sequences=1, length=20, pairs=1, generator=generator, vocabulary=V, haystack="text")
    with pytest.raises(UserError, match="reserved tokens"):
        generate("niah", **cell, text=np.array([9]))


def test_a_task_of_a_users_own_file(tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("X = 1")
    with pytest.raises(UserError, match="sets no TASK"):
        minimum_length(str(path), pairs=1)
