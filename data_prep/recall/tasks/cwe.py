"""Common words, after RULER (arXiv 2404.06654): a list in which ten words are ten times as frequent as the others; which are they?

RULER has ten common words 30 times and uncommon ones 3 times each, as many as the length wants. Here `pairs` is the number of
uncommon words, which are repeated as the length wants, and common ones `ratio` times as often. RULER takes the answers in any
order; here each is predicted after those before it, in the order in which they first occurred.
"""

import numpy as np

from ..sequences import RecallBatch, TaskCell
from ..task import Task, the_keys
from ..vocabulary import RecallVocabulary
from ..words import draw_words


def minimum_length(pairs: int, queries: int, *, common: int = 10, ratio: int = 10) -> int:
    """Tokens of a sequence that shows every uncommon word once."""
    return ratio * common + pairs + common


def generate(
    cell: TaskCell, vocabulary: RecallVocabulary, generator: np.random.Generator, *, common: int = 10, ratio: int = 10
) -> RecallBatch:
    """Generate sequences of words without noise, then `Q w1 w2 ...`.

    Args:
        common: how many words are queried; ratio: how many times as often they occur as an uncommon word.
    """
    words = draw_words(cell, common + cell.pairs, common, vocabulary, generator)
    slots = cell.length - common
    times = slots // (ratio * common + cell.pairs)
    counts = np.repeat([ratio * times, times], [common, cell.pairs])
    # The remaining room is filled with uncommon words in turn, which stay far less frequent than the common ones.
    left = slots - int(counts.sum())
    counts[common:] += left // cell.pairs + (np.arange(cell.pairs) < left % cell.pairs)
    listed = generator.permuted(np.repeat(words, counts, axis=1), axis=1)
    first = (listed[:, None, :] == words[:, :common, None]).argmax(axis=2)
    answers = np.take_along_axis(words[:, :common], first.argsort(axis=1), axis=1)
    question = np.concatenate([np.full((len(words), 1), vocabulary.query), answers[:, :-1]], axis=1)
    positions = np.broadcast_to(slots + np.arange(common), answers.shape)
    return RecallBatch(np.concatenate([listed, question], axis=1), positions, answers)


TASK = Task(
    generate,
    minimum_length,
    choices=the_keys,
    num_keys=lambda pairs, common=10, **_: common,
    most_queries=1,
    labels_per_query=lambda common=10, **_: common,
)
