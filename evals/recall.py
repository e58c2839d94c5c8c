"""Recall accuracy of a model: one cell of a task's grid at a time, in the parallel pass."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data_prep.recall import RecallBatch, RecallVocabulary, generate, seeded_generator
from .config import Suite
from .scores import accuracy


@dataclass(frozen=True)
class RecallCell:
    """One task with one number of pairs at one length (tokens), at least `queries` answers."""

    task: str
    pairs: int
    length: int
    queries: int
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """Name in metrics and figures: the task, its pairs and its options, without the length."""
        options = [f"{name}-{value}" for name, value in sorted(self.options.items())]
        return "-".join([self.task, str(self.pairs), *options])

    @property
    def sequences(self) -> int:
        """Sequences that ask `queries` questions, each of its keys once."""
        return math.ceil(self.queries / self.pairs)

    @property
    def tokens(self) -> int:
        """What the cell costs."""
        return self.sequences * self.length


def recall_cells(suite: Suite) -> list[RecallCell]:
    """All cells of a suite, in its order."""
    return [
        RecallCell(grid.task, pairs, length, grid.queries, grid.options)
        for grid in suite.recall
        for pairs in grid.pairs
        for length in grid.lengths
    ]


def recall_batches(
    cell: RecallCell, vocabulary: RecallVocabulary, *, batch_tokens: int, seed: int
) -> Iterator[RecallBatch]:
    """The cell's sequences, in batches of at most `batch_tokens` tokens (at least one sequence each).

    They depend on the cell and the seed alone, and come from a stream that training never uses.
    """
    options = [item for name, value in sorted(cell.options.items()) for item in (name, value)]
    generator = seeded_generator("evaluation", cell.task, cell.length, cell.pairs, *options, seed)
    size = max(1, batch_tokens // cell.length)
    for first in range(0, cell.sequences, size):
        yield generate(
            cell.task,
            sequences=min(size, cell.sequences - first),
            length=cell.length,
            pairs=cell.pairs,
            generator=generator,
            vocabulary=vocabulary,
            **cell.options,
        )


@torch.inference_mode()
def evaluate_recall(
    model: nn.Module,
    cell: RecallCell,
    vocabulary: RecallVocabulary,
    *,
    batch_tokens: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of one cell.

    The answer is the likeliest of the vocabulary's values, so that guessing gives 1/values whatever the model; beside
    it stands `open_accuracy`, where the likeliest of *all* tokens has to be the right one.

    Args:
        model: called as `model(tokens, at=mask)`: int64 `[B, T]` to logits `[n, V]` at the n positions of the mask.

    Returns:
        `task`, `label`, `pairs`, `length`, the fields of `scores.accuracy`, and `open_accuracy`.

    Raises:
        UserError: the generator refuses the cell (unknown task or option, too short a length).
        FloatingPointError: a logit is not finite.
    """
    values = torch.tensor(list(vocabulary.values), device=device)
    queries = correct = open_correct = 0
    for batch in recall_batches(cell, vocabulary, batch_tokens=batch_tokens, seed=seed):
        tokens = torch.from_numpy(batch.tokens).to(device)
        asked = torch.from_numpy(batch.loss_mask).to(device).bool()
        answers = torch.from_numpy(batch.labels).to(device)[asked]
        logits = model(tokens, at=asked)  # [queries, V]
        if not torch.isfinite(logits).all():
            raise FloatingPointError(f"{cell.label} at {cell.length} tokens")
        queries += answers.numel()
        correct += int((values[logits[..., values].argmax(-1)] == answers).sum())
        open_correct += int((logits.argmax(-1) == answers).sum())
    return {
        "task": cell.task,
        "label": cell.label,
        "pairs": cell.pairs,
        "length": cell.length,
        **accuracy(correct, queries, chance=1 / vocabulary.num_values),
        "open_accuracy": open_correct / queries,
    }
