"""MQAR: multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927), as Echo §4.2 lays it out.

`k v` for every pair, a gap of noise, then the keys again in random order; at each of them its value is predicted.
"""

import numpy as np

from ..noise import draw_noise
from ..sequences import RecallBatch, TaskCell, choose_queries, draw_pairs
from ..task import Task
from ..vocabulary import RecallVocabulary


def minimum_length(pairs: int, queries: int, *, noise: str = "uniform") -> int:
    """Tokens of a sequence without a gap."""
    return 2 * pairs + queries


def generate(
    cell: TaskCell, vocabulary: RecallVocabulary, generator: np.random.Generator, *, noise: str = "uniform"
) -> RecallBatch:
    """Generate sequences whose gap fills the room that pairs and queries leave. A queried key is followed by the next one.

    Args:
        noise: the kind of the gap's; see `draw_noise`.
    """
    keys, values = draw_pairs(cell, vocabulary, generator)
    tokens = draw_noise(vocabulary.seen_noise, (cell.sequences, cell.length), generator, noise)
    tokens[:, : 2 * cell.pairs] = np.stack([keys, values], axis=2).reshape(cell.sequences, -1)
    queried = choose_queries(cell, generator)
    first = cell.length - cell.queries
    tokens[:, first:] = np.take_along_axis(keys, queried, axis=1)
    positions = np.broadcast_to(first + np.arange(cell.queries), queried.shape)
    return RecallBatch(tokens, positions, np.take_along_axis(values, queried, axis=1))


TASK = Task(generate, minimum_length)
