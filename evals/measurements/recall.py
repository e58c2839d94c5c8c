"""Recall accuracy of a model on one cell of a task's grid, in a parallel forward pass or token by token."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data_prep.loading.dataset import Dataset
from ...data_prep.recall import RecallBatch, RecallVocabulary, generate, seeded_generator, task_of
from ...models import EchoLM, prefill, step
from ...models.decoding import SEGMENT
from ..scores import accuracy
from .recall_cells import RecallCell

# Sequences are generated in blocks of at most so many tokens, each from its own generator, whatever the batches are.
BLOCK_TOKENS = 1 << 22


def recall_batches(
    cell: RecallCell,
    vocabulary: RecallVocabulary,
    *,
    batch_tokens: int,
    seed: int,
    text: np.ndarray | None = None,
) -> Iterator[RecallBatch]:
    """The cell's sequences, in batches that a forward pass of at most `batch_tokens` tokens can take (at least one each).

    They depend on the cell and the seed alone, and come from streams that training never uses.

    Args:
        text: token ids for haystacks of real text.
    """
    worked = min(cell.length, SEGMENT) if cell.recurrent else cell.length
    size, block = max(1, batch_tokens // worked), max(1, BLOCK_TOKENS // cell.length)
    options = [item for name, value in sorted(cell.options.items()) for item in (name, value)]
    for first in range(0, cell.sequences, block):
        found = generate(
            cell.task,
            sequences=min(block, cell.sequences - first),
            length=cell.length,
            pairs=cell.pairs,
            generator=seeded_generator("evaluation", cell.name, cell.length, cell.pairs, *options, seed, first),
            vocabulary=vocabulary,
            text=text,
            **cell.options,
        )
        for start in range(0, len(found.tokens), size):
            yield found.rows(start, start + size)


def haystack_text(dataset: Dataset, cells: Iterable[RecallCell]) -> np.ndarray | None:
    """Held-out text for the cells whose haystack is text, at most as long as the longest of them; None if there are none."""
    lengths = [cell.length for cell in cells if task_of(cell.task).needs_text(**cell.options)]
    if not lengths:
        return None
    stream = dataset.split("heldout")
    return stream.read(0, min(stream.num_tokens, max(lengths)))


def answer_logits(
    model: nn.Module, batch: RecallBatch, *, recurrent: bool = False, device: torch.device | str = "cpu"
) -> Tensor:
    """Logits `[N, Q, V]` of the token after each query position.

    Args:
        model: called as `model(tokens, logits_to_keep=mask)`: int64 `[B, T]` to logits `[n, V]` at the n positions of the mask; an
            `EchoLM` if recurrent.
        recurrent: read what precedes the first question in segments that pass a state on, then token by token: the
            memory is that of one segment, whatever the length (attention layers excepted). A bounded KV cache is cut before
            the first question is read.
    """
    tokens = torch.from_numpy(batch.tokens).to(device)
    positions = torch.from_numpy(np.array(batch.query_positions)).to(device)
    if not recurrent:
        is_query = torch.zeros(tokens.shape, dtype=torch.bool, device=device).scatter_(1, positions, True)
        return model(tokens, logits_to_keep=is_query).unflatten(0, positions.shape)
    assert isinstance(model, EchoLM)
    before, last = max(1, int(positions.min())), int(positions.max())
    logits, cache = prefill(model, tokens[:, :before])
    found = logits.new_zeros(*positions.shape, logits.shape[-1])
    for position in range(before - 1, last + 1):
        if position >= before:
            logits, cache = step(model, tokens[:, position], cache)
        found = torch.where((positions == position)[..., None], logits[:, None], found)
    return found


def evaluate_recall(
    model: nn.Module,
    cell: RecallCell,
    vocabulary: RecallVocabulary,
    *,
    batch_tokens: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    text: np.ndarray | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Accuracy of a model on one cell.

    The prediction is the likeliest of the task's choices (usually the vocabulary's values), so that guessing gives 1/choices for
    any model. For `open_accuracy` it is the likeliest of *all* tokens.

    Args:
        model: see `answer_logits`.
        text: token ids for haystacks of real text.
        on_batch: called with the tokens of each batch when it is done.

    Returns:
        `task`, `label`, `pairs`, `length`, `options`, `recurrent`, the fields of `scores.accuracy`, `ceiling`,
        `open_accuracy`, and `correct_by_sequence`, by which two models are compared (`evals/differences.py`).

    Raises:
        UserError: the generator refuses the cell (unknown task or option, too short a length).
        FloatingPointError: a logit is not finite.
    """
    task = task_of(cell.task)
    batches = recall_batches(cell, vocabulary, batch_tokens=batch_tokens, seed=seed, text=text)
    if on_batch:
        batches = _told(batches, on_batch)
    by_sequence: list[int] = []
    counted = count_correct(model, cell, vocabulary, batches, device=device, by_sequence=by_sequence)
    chance = 1 / len(task.choices(vocabulary))
    return {
        **cell.described(),
        **accuracy(counted["correct"], counted["queries"], chance=chance),
        "ceiling": task.ceiling,
        "open_accuracy": counted["open_correct"] / counted["queries"],
        "correct_by_sequence": by_sequence,
    }


@torch.inference_mode()
def count_correct(
    model: nn.Module,
    cell: RecallCell,
    vocabulary: RecallVocabulary,
    batches: Iterable[RecallBatch],
    *,
    device: torch.device | str = "cpu",
    by_sequence: list[int] | None = None,
) -> dict[str, int]:
    """Counts of right answers on given sequences, from which `evaluate_recall` computes accuracies.

    Args:
        by_sequence: gets the number of right answers of each sequence appended.

    Returns:
        `queries`, `correct` among the task's choices, `open_correct` among all tokens.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    choices = task_of(cell.task).choices(vocabulary)
    queries = correct = open_correct = 0
    for batch in batches:
        logits = answer_logits(model, batch, recurrent=cell.recurrent, device=device)
        if not torch.isfinite(logits).all():
            raise FloatingPointError(f"{cell.label} at {cell.length} tokens")
        answers = torch.from_numpy(np.array(batch.answers)).to(device)
        queries += answers.numel()
        right = (logits[..., choices.start : choices.stop].argmax(-1) + choices.start == answers).sum(dim=-1)
        correct += int(right.sum())
        if by_sequence is not None:
            by_sequence += right.tolist()
        open_correct += int((logits.argmax(-1) == answers).sum())
    return {"queries": queries, "correct": correct, "open_correct": open_correct}


def _told(batches: Iterable[RecallBatch], on_batch: Callable[[int], None]) -> Iterator[RecallBatch]:
    for batch in batches:
        yield batch
        on_batch(batch.tokens.size)
