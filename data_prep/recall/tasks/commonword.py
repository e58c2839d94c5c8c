"""CommonWord: words in random order, one of them about twice as frequent as any other, then `Q`: which one?

Echo, arXiv 2605.06997, §4.1; after RULER's common words (Hsieh et al., arXiv 2404.06654). `pairs` is the number of different words.
"""

import numpy as np

from ....models.common.errors import UserError
from ..sequences import RecallBatch, TaskCell
from ..task import Task
from ..vocabulary import RecallVocabulary


def minimum_length(pairs: int, queries: int) -> int:
    """Tokens of a sequence that shows the common word twice and every other once."""
    return pairs + 2


def generate(cell: TaskCell, vocabulary: RecallVocabulary, generator: np.random.Generator) -> RecallBatch:
    """Generate sequences of words, drawn from the values, without noise; the other words are equally frequent, up to one."""
    if cell.pairs > vocabulary.num_values:
        raise UserError(f"commonword: {cell.pairs} different words: the vocabulary has {vocabulary.num_values}")
    words = vocabulary.draw_distinct(vocabulary.values, (cell.sequences, cell.pairs), generator)
    slots = cell.length - 1
    common = slots if cell.pairs == 1 else -(-2 * slots // (cell.pairs + 1))
    which = np.zeros(slots, dtype=np.int64)
    # If the first word has c > 2 slots / (words + 1) occurrences, no other word can have as many.
    which[common:] = 1 + np.arange(slots - common) % max(cell.pairs - 1, 1)
    order = which[generator.random((cell.sequences, slots), dtype=np.float32).argsort(axis=1)]
    tokens = np.full((cell.sequences, cell.length), vocabulary.query)
    tokens[:, :slots] = np.take_along_axis(words, order, axis=1)
    return RecallBatch(tokens, np.full((cell.sequences, 1), slots), words[:, :1])


TASK = Task(generate, minimum_length, num_keys=lambda pairs: 0, most_queries=1)
