"""ToolTrace: the results of tool calls scattered in noise, then questions about them.

Units `CALL k RES v` in noise, `Q k v ... Q k`. Echo, arXiv 2605.06997, §4.1.
"""

import numpy as np

from ..noise import draw_noise
from ..sequences import RecallBatch, TaskCell, append_queries, queries_length, scatter_with_mentions
from ..task import Task
from ..vocabulary import RecallVocabulary

UNIT = 4


def minimum_length(
    pairs: int, queries: int, *, overwrites: int = 0, mentions: float = 0.0, noise: str = "uniform"
) -> int:
    """Tokens of a sequence without any noise."""
    return UNIT * (pairs + overwrites) + queries_length(queries)


def generate(
    cell: TaskCell,
    vocabulary: RecallVocabulary,
    generator: np.random.Generator,
    *,
    overwrites: int = 0,
    mentions: float = 0.0,
    noise: str = "uniform",
) -> RecallBatch:
    """Generate sequences in which noise fills the room that calls and queries leave.

    Args:
        overwrites: further calls, each of a random key among the `pairs`; the latest result of a key is the answer.
        mentions: keys in the noise without a call, as a share of the noise; see `scatter_with_mentions`.
        noise: its kind; see `draw_noise`.
    """
    keys = vocabulary.draw_distinct_keys((cell.sequences, cell.pairs), generator)
    calls = cell.pairs + overwrites
    # Every key is called once and some again, in random order: [N, calls], indices into the pairs.
    again = generator.integers(0, cell.pairs, size=(cell.sequences, overwrites))
    called = np.concatenate([np.broadcast_to(np.arange(cell.pairs), keys.shape), again], axis=1)
    called = generator.permuted(called, axis=1)
    results = vocabulary.draw(vocabulary.values, called.shape, generator)

    last_call = np.zeros(keys.shape, dtype=np.int64)
    order = np.broadcast_to(np.arange(calls), called.shape)
    np.maximum.at(last_call, (np.arange(cell.sequences)[:, None], called), order)
    values = np.take_along_axis(results, last_call, axis=1)

    called_keys = np.take_along_axis(keys, called, axis=1)
    call = np.full_like(called_keys, vocabulary.call)
    result = np.full_like(called_keys, vocabulary.result)
    units = np.stack([call, called_keys, result, results], axis=2)

    tokens = draw_noise(vocabulary.seen_noise, (cell.sequences, cell.length), generator, noise)
    scatter_with_mentions(tokens, units, keys, cell.length - queries_length(cell.queries), mentions, generator)
    return append_queries(tokens, keys, values, cell, vocabulary, generator)


TASK = Task(generate, minimum_length)
