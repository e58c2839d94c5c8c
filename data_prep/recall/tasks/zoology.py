"""Zoology's own form of MQAR (Arora et al., arXiv 2312.04927, App. E), for figures that other papers have too.

`k v` for every pair, then as many queried keys, at even places whose distance from the pairs follows a power law; what stands
between is drawn from the whole vocabulary of keys and values, so that it shares ids with them. A queried key's value is predicted
and not shown. Keys and values are distinct in a sequence.
"""

import numpy as np

from ..sequences import RecallBatch, TaskCell
from ..task import Task
from ..vocabulary import RecallVocabulary

UNIT = 2


def minimum_length(pairs: int, queries: int, *, exponent: float = 0.01) -> int:
    """Tokens of a sequence without a place to spare."""
    return UNIT * (pairs + queries)


def generate(
    cell: TaskCell, vocabulary: RecallVocabulary, generator: np.random.Generator, *, exponent: float = 0.01
) -> RecallBatch:
    """Generate sequences whose queries mostly come soon after the pairs.

    Args:
        exponent: a of the density a i^(a - 1) of a query's place i = 1, 2, ... behind the pairs.
    """
    n, first = cell.sequences, UNIT * cell.pairs
    keys = vocabulary.draw_distinct_keys((n, cell.pairs), generator)
    values = vocabulary.draw_distinct(vocabulary.values, (n, cell.pairs), generator)
    # Drawn one after the other without replacement, by the largest of log p + Gumbel noise.
    places = np.arange(1, (cell.length - first) // UNIT + 1)
    scores = (exponent - 1) * np.log(places) + generator.gumbel(size=(n, len(places)))
    chosen = np.argpartition(-scores, cell.queries - 1, axis=1)[:, : cell.queries]
    positions = first + UNIT * np.sort(chosen, axis=1)
    queried = generator.random((n, cell.pairs)).argsort(axis=1)[:, : cell.queries]

    tokens = vocabulary.draw(range(vocabulary.keys.start, vocabulary.values.stop), (n, cell.length), generator)
    tokens[:, :first:UNIT], tokens[:, 1:first:UNIT] = keys, values
    np.put_along_axis(tokens, positions, np.take_along_axis(keys, queried, axis=1), axis=1)
    return RecallBatch(tokens, positions, np.take_along_axis(values, queried, axis=1))


TASK = Task(generate, minimum_length)
