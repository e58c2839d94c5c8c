"""Frequent words, after RULER (arXiv 2404.06654): words whose frequencies fall with the square of their rank; the first three?

RULER draws coded words from a zeta distribution with an exponent of 2.0 and asks for the three most frequent. Here `pairs` is the
number of different words, each of the first `top` stands more often than the next, and they are predicted in that order.
"""

import numpy as np

from ....models.common.errors import UserError
from ..sequences import RecallBatch, TaskCell
from ..task import Task, the_keys
from ..vocabulary import RecallVocabulary
from ..words import draw_words


def minimum_length(pairs: int, queries: int, *, top: int = 3, exponent: float = 2.0) -> int:
    """Tokens of a sequence in which each queried word occurs once more than the next one, and all others once."""
    return pairs + top * (top + 1) // 2 + top


def generate(
    cell: TaskCell, vocabulary: RecallVocabulary, generator: np.random.Generator, *, top: int = 3, exponent: float = 2.0
) -> RecallBatch:
    """Generate sequences of words without noise, then `Q w1 w2 w3`, the most frequent first.

    Args:
        top: how many words are queried; exponent: of the frequencies, 1 / rank^exponent.
    """
    if not 1 <= top <= cell.pairs:
        raise UserError(f"fwe: top is {top}: from 1 to the number of words, {cell.pairs}")
    words = draw_words(cell, cell.pairs, top, vocabulary, generator)
    slots = cell.length - top
    rank = 1 + np.arange(cell.pairs)
    counts = 1 + np.maximum(top + 1 - rank, 0)
    shares = rank**-exponent
    left = slots - int(counts.sum())
    counts = counts + (left * shares / shares.sum()).astype(np.int64)
    counts[0] += slots - int(counts.sum())
    listed = generator.permuted(np.repeat(words, counts, axis=1), axis=1)
    answers = words[:, :top]
    question = np.concatenate([np.full((len(words), 1), vocabulary.query), answers[:, :-1]], axis=1)
    positions = np.broadcast_to(slots + np.arange(top), answers.shape)
    return RecallBatch(np.concatenate([listed, question], axis=1), positions, answers)


TASK = Task(
    generate,
    minimum_length,
    choices=the_keys,
    num_keys=lambda pairs, top=3, **_: top,
    most_queries=1,
    labels_per_query=lambda top=3, **_: top,
)
