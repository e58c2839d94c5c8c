"""Recall accuracy: what a model that knows, one that guesses and one that diverged score."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from echo_lm.data_prep.recall import TASKS, RecallVocabulary, generate, minimum_length, seeded_generator
from echo_lm.evals.config import load_suite
from echo_lm.evals.measurements.recall import answer_logits, evaluate_recall, recall_batches
from echo_lm.evals.measurements.recall_cells import RecallCell, RecallGrid, cells_of, grid_cells
from echo_lm.models import build_model, preset

VOCABULARY = RecallVocabulary(first_id=2)
VOCAB_SIZE = 160
CELL = RecallCell("sysprompt", 4, 64, 1000, {})


class Oracle(nn.Module):
    """Reads the answers from the generator's record: the same batches, in the same order."""

    def __init__(self, cell: RecallCell, *, batch_tokens: int, seed: int, wrong: int = 0):
        super().__init__()
        self.batches = recall_batches(cell, VOCABULARY, batch_tokens=batch_tokens, seed=seed)
        self.wrong = wrong

    def forward(self, tokens: torch.Tensor, *, logits_to_keep: torch.Tensor) -> torch.Tensor:
        batch = next(self.batches)
        assert np.array_equal(batch.tokens, tokens.numpy())
        answers = torch.from_numpy(batch.labels)
        answers[: self.wrong] = VOCABULARY.keys[0]  # never a value
        return nn.functional.one_hot(answers[logits_to_keep], VOCAB_SIZE).float()


class Lookup(nn.Module):
    """Finds the value by looking: the token after the key's first occurrence. Sees only the tokens."""

    def forward(self, tokens: torch.Tensor, *, logits_to_keep: torch.Tensor) -> torch.Tensor:
        first = (tokens[:, :, None] == tokens[:, None, :]).int().argmax(-1)  # [N, L], position of the same token
        found = tokens.gather(1, (first + 1).clamp(max=tokens.shape[1] - 1))
        return nn.functional.one_hot(found[logits_to_keep], VOCAB_SIZE).float()


class Random(nn.Module):
    """An embedding and a head without any training, or any memory."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(VOCAB_SIZE, 16, generator=generator)
        self.mixing = torch.randn(16, VOCAB_SIZE, generator=generator)

    def forward(self, tokens: torch.Tensor, *, logits_to_keep: torch.Tensor) -> torch.Tensor:
        return self.embedding[tokens][logits_to_keep] @ self.mixing


ORACLE_CELLS = [
    *cells_of(load_suite("recall-quick").protocols["recall"])[::4],
    *(RecallCell(task, 4, minimum_length(task, pairs=4) + 30, 500, {}) for task in sorted(TASKS)),
    RecallCell("niah", 8, 500, 64, {"haystack": "decoys", "depth": 0.5}),
]


@pytest.mark.parametrize("cell", ORACLE_CELLS, ids=lambda cell: cell.label)
def test_an_oracle_scores_everything(cell):
    row = evaluate_recall(Oracle(cell, batch_tokens=5000, seed=3), cell, VOCABULARY, batch_tokens=5000, seed=3)
    assert row["accuracy"] == row["open_accuracy"] == 1
    assert row["queries"] >= cell.queries
    assert sum(row["correct_by_sequence"]) == row["correct"]
    assert len(row["correct_by_sequence"]) == cell.sequences
    assert row["low"] < row["high"] == 1


def test_an_answer_that_is_no_value_is_wrong_in_the_open():
    oracle = Oracle(CELL, batch_tokens=10**6, seed=0, wrong=125)
    row = evaluate_recall(oracle, CELL, VOCABULARY, batch_tokens=10**6)
    assert row["open_accuracy"] == 0.5
    assert sum(row["correct_by_sequence"]) == row["correct"] < row["queries"]
    # Among the values these logits are all alike: the first of them is taken, right once in 32.
    assert 0.5 < row["accuracy"] < 0.55


def test_a_reader_of_the_tokens_alone_scores_everything():
    assert evaluate_recall(Lookup(), CELL, VOCABULARY, batch_tokens=4096)["accuracy"] == 1


@pytest.mark.parametrize("task", sorted(TASKS))
def test_random_weights_score_within_their_interval_of_chance(task):
    """A model without memory, whose guess cannot depend on what was stored; test_run.py does it with a real one."""
    length = max(64, minimum_length(task, pairs=4))
    row = evaluate_recall(Random(seed=1), RecallCell(task, 4, length, 2000, {}), VOCABULARY, batch_tokens=8192)
    assert row["chance"] == {"economy": 1 / 8, "variables": 1 / 40, "cwe": 1 / 40, "fwe": 1 / 40}.get(task, 1 / 32)
    assert row["low"] <= row["chance"] <= row["high"]
    assert row["ceiling"] == 1


def test_sequences_depend_on_cell_and_seed_alone():
    def tokens(cell: RecallCell, seed: int) -> np.ndarray:
        return np.concatenate([batch.tokens for batch in recall_batches(cell, VOCABULARY, batch_tokens=999, seed=seed)])

    np.random.seed(5)  # noqa: NPY002 (the state that must not matter)
    first = tokens(CELL, 0)
    assert np.array_equal(first, tokens(CELL, 0))
    assert not np.array_equal(first, tokens(CELL, 1))
    assert not np.array_equal(first, tokens(RecallCell("sysprompt", 4, 64, 1000, {"decoys": 1}), 0))


def test_batches_may_have_any_size_without_changing_the_sequences():
    whole, parts = (
        np.concatenate([batch.tokens for batch in recall_batches(CELL, VOCABULARY, batch_tokens=size, seed=0)])
        for size in (10**6, 200)
    )
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_evaluation_never_meets_training(task):
    """By hash: 10,000 sequences of training and 10,000 of evaluation, cell by cell alike, have none in common."""
    length = max(64, minimum_length(task, pairs=4))
    cell = RecallCell(task, 4, length, 10_000, {})
    evaluated = {
        hash(row.tobytes()) for b in recall_batches(cell, VOCABULARY, batch_tokens=10**6, seed=0) for row in b.tokens
    }
    trained = set()
    for step in range(100):
        generator = seeded_generator("training", "recall", 0, step, 0)
        found = generate(task, sequences=100, length=length, pairs=4, generator=generator, vocabulary=VOCABULARY)
        trained |= {hash(row.tobytes()) for row in found.tokens}
    assert len(trained) == 10_000
    assert not evaluated & trained


@pytest.fixture(scope="module")
def small_model():
    """Two layers, every weight random, in float64: equal logits to 1e-9 leave no doubt about an argmax."""
    config = preset(
        "echo-1m",
        vocab_size=VOCAB_SIZE,
        d_model=32,
        layers=["mamba2", "ska"],
        mamba2=dict(headdim=32),
        ska=dict(num_heads=2, rank=8),
        feedforward=dict(width=32),
    )
    model = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.double()


@torch.inference_mode()
def predictions(model, cell: RecallCell, recurrent: bool) -> torch.Tensor:
    batches = recall_batches(cell, VOCABULARY, batch_tokens=1 << 18, seed=0)
    return torch.cat([answer_logits(model, batch, recurrent=recurrent).argmax(-1).flatten() for batch in batches])


@pytest.mark.parametrize(
    ("task", "length", "queries"),
    [("sysprompt", 64, 8000), ("mqar", 64, 1000), ("niah", 1500, 32), ("variables", 96, 1000)],
)
def test_recurrent_evaluation_gives_the_predictions_of_the_parallel_one(small_model, task, length, queries):
    """10,000 queries in all; 1,500 tokens are more than one segment."""
    cell = RecallCell(task, 8 if task != "variables" else 2, length, queries, {})
    parallel, recurrent = (predictions(small_model, cell, recurrent) for recurrent in (False, True))
    assert len(parallel) >= queries
    assert len(parallel.unique()) > 1
    assert torch.equal(parallel, recurrent)


@pytest.mark.parametrize(
    "length", [1 << 14, pytest.param(1 << 20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_long_cell_runs_in_constant_memory(length):
    """A million parameters; what grows with the length is the sequence itself, 20 bytes a token."""
    code = f"""
import resource, torch
torch.set_num_threads(1)
from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals.measurements.recall import RecallCell, evaluate_recall
from echo_lm.models import build_model, preset
model = build_model(preset("echo-1m", vocab_size=128))
def run(length):
    row = evaluate_recall(model, RecallCell("niah", 8, length, 8, {{}}, True), RecallVocabulary(), batch_tokens=2048)
    assert row["queries"] == 8 and row["recurrent"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
short = run(4096)
print(run({length}) - short)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * 2**20 + 40 * length


def test_gaps_and_varied_options_are_axes_of_the_grid():
    grid = RecallGrid(
        task="niah", pairs=(1, 2), gaps=(0, 10), queries=8, options={"haystack": "unseen"}, vary={"depth": (0, 1)}
    )
    cells = grid_cells(grid)
    assert len(cells) == 8
    assert [cell.length for cell in cells[:2]] == [4, 14]
    assert {cell.label for cell in cells} == {f"niah-{p}-depth-{d}-haystack-unseen" for p in (1, 2) for d in (0, 1)}


def test_a_batch_holds_no_more_tokens_than_it_may():
    sizes = [len(batch.tokens) for batch in recall_batches(CELL, VOCABULARY, batch_tokens=1000, seed=0)]
    assert sum(sizes) == 250
    assert max(sizes) == 15
    assert [len(b.tokens) for b in recall_batches(CELL, VOCABULARY, batch_tokens=10, seed=0)] == [1] * 250


def test_logits_that_are_not_finite_are_not_scored():
    class Diverged(nn.Module):
        def forward(self, tokens: torch.Tensor, *, logits_to_keep: torch.Tensor) -> torch.Tensor:
            return torch.full((int(logits_to_keep.sum()), VOCAB_SIZE), float("nan"))

    with pytest.raises(FloatingPointError, match="sysprompt-4 at 64"):
        evaluate_recall(Diverged(), CELL, VOCABULARY, batch_tokens=4096)
