"""Recall accuracy: what a model that knows, one that guesses and one that diverged score."""

import numpy as np
import pytest
import torch
from torch import nn

from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals.config import load_suite
from echo_lm.evals.recall import RecallCell, evaluate_recall, recall_batches, recall_cells

VOCABULARY = RecallVocabulary(first_id=2)
VOCAB_SIZE = 160
CELL = RecallCell("sysprompt", 4, 64, 1000, {})


class Oracle(nn.Module):
    """Reads the answers from the generator's record: the same batches, in the same order."""

    def __init__(self, cell: RecallCell, *, batch_tokens: int, seed: int, wrong: int = 0):
        super().__init__()
        self.batches = recall_batches(cell, VOCABULARY, batch_tokens=batch_tokens, seed=seed)
        self.wrong = wrong

    def forward(self, tokens: torch.Tensor, *, at: torch.Tensor) -> torch.Tensor:
        batch = next(self.batches)
        assert np.array_equal(batch.tokens, tokens.numpy())
        answers = torch.from_numpy(batch.labels)
        answers[: self.wrong] = VOCABULARY.keys[0]  # never a value
        return nn.functional.one_hot(answers[at], VOCAB_SIZE).float()


class Lookup(nn.Module):
    """Finds the value by looking: the token after the key's first occurrence. Sees only the tokens."""

    def forward(self, tokens: torch.Tensor, *, at: torch.Tensor) -> torch.Tensor:
        first = (tokens[:, :, None] == tokens[:, None, :]).int().argmax(-1)  # [N, L], position of the same token
        found = tokens.gather(1, (first + 1).clamp(max=tokens.shape[1] - 1))
        return nn.functional.one_hot(found[at], VOCAB_SIZE).float()


class Random(nn.Module):
    """An embedding and a head without any training, or any memory."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(VOCAB_SIZE, 16, generator=generator)
        self.mixing = torch.randn(16, VOCAB_SIZE, generator=generator)

    def forward(self, tokens: torch.Tensor, *, at: torch.Tensor) -> torch.Tensor:
        return self.embedding[tokens].cumsum(1)[at] @ self.mixing


@pytest.mark.parametrize("cell", recall_cells(load_suite("recall-quick"))[::3], ids=lambda cell: cell.label)
def test_an_oracle_scores_everything(cell):
    row = evaluate_recall(Oracle(cell, batch_tokens=5000, seed=3), cell, VOCABULARY, batch_tokens=5000, seed=3)
    assert row["accuracy"] == row["open_accuracy"] == 1
    assert row["queries"] >= cell.queries
    assert row["low"] < row["high"] == 1


def test_an_answer_that_is_no_value_is_wrong_in_the_open():
    oracle = Oracle(CELL, batch_tokens=10**6, seed=0, wrong=125)
    row = evaluate_recall(oracle, CELL, VOCABULARY, batch_tokens=10**6)
    assert row["open_accuracy"] == 0.5
    # Among the values these logits are all alike: the first of them is taken, right once in 32.
    assert 0.5 < row["accuracy"] < 0.55


def test_a_reader_of_the_tokens_alone_scores_everything():
    assert evaluate_recall(Lookup(), CELL, VOCABULARY, batch_tokens=4096)["accuracy"] == 1


@pytest.mark.parametrize("task", ["sysprompt", "tooltrace", "mqar", "niah"])
def test_random_weights_score_within_their_interval_of_chance(task):
    cell = RecallCell(task, 4, 64, 2000, {})
    row = evaluate_recall(Random(seed=1), cell, VOCABULARY, batch_tokens=8192)
    assert row["low"] <= row["chance"] == 1 / 32 <= row["high"]


def test_sequences_depend_on_cell_and_seed_alone():
    def tokens(cell: RecallCell, seed: int) -> np.ndarray:
        return np.concatenate([batch.tokens for batch in recall_batches(cell, VOCABULARY, batch_tokens=999, seed=seed)])

    np.random.seed(5)  # noqa: NPY002 (the state that must not matter)
    first = tokens(CELL, 0)
    assert np.array_equal(first, tokens(CELL, 0))
    assert not np.array_equal(first, tokens(CELL, 1))
    assert not np.array_equal(first, tokens(RecallCell("sysprompt", 4, 64, 1000, {"decoys": 1}), 0))


def test_a_batch_holds_no_more_tokens_than_it_may():
    sizes = [len(batch.tokens) for batch in recall_batches(CELL, VOCABULARY, batch_tokens=1000, seed=0)]
    assert sum(sizes) == 250
    assert max(sizes) == 15
    assert [len(b.tokens) for b in recall_batches(CELL, VOCABULARY, batch_tokens=10, seed=0)] == [1] * 250


def test_logits_that_are_not_finite_are_not_scored():
    class Diverged(nn.Module):
        def forward(self, tokens: torch.Tensor, *, at: torch.Tensor) -> torch.Tensor:
            return torch.full((int(at.sum()), VOCAB_SIZE), float("nan"))

    with pytest.raises(FloatingPointError, match="sysprompt-4 at 64"):
        evaluate_recall(Diverged(), CELL, VOCABULARY, batch_tokens=4096)
