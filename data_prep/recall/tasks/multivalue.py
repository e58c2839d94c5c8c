"""Multi-value needles, after RULER (arXiv 2404.06654): a key stands several times, each time with another value; all are asked.

Needles `k v` in noise, `values` of each key, then `Q k v1 v2 ...` in the order in which they stood; each is one answer.
"""

import numpy as np

from ....models.common.errors import UserError
from ..noise import draw_noise
from ..sequences import RecallBatch, TaskCell, choose_queries, scatter_with_mentions
from ..task import Task
from ..vocabulary import RecallVocabulary

UNIT = 2


def minimum_length(pairs: int, queries: int, *, values: int = 4, mentions: float = 0.0, noise: str = "uniform") -> int:
    """Tokens of a sequence without any noise."""
    return UNIT * pairs * values + queries * (2 + values) - 1


def generate(
    cell: TaskCell,
    vocabulary: RecallVocabulary,
    generator: np.random.Generator,
    *,
    values: int = 4,
    mentions: float = 0.0,
    noise: str = "uniform",
) -> RecallBatch:
    """Generate sequences in which noise fills the room that needles and queries leave.

    Args:
        values: of each key, all different.
        mentions: keys in the noise without a value, as a share of the noise; see `scatter_with_mentions`.
        noise: its kind; see `draw_noise`.
    """
    if not 1 <= values <= vocabulary.num_values:
        raise UserError(f"multivalue: values is {values}: from 1 to {vocabulary.num_values}, the vocabulary's")
    n, shape = cell.sequences, (cell.sequences, cell.pairs, values)
    keys = vocabulary.draw_distinct_keys((n, cell.pairs), generator)
    drawn = vocabulary.draw_distinct(vocabulary.values, (n * cell.pairs, values), generator).reshape(shape)
    # Needles of all keys in random order; those of one key in the order of its values.
    owner = generator.permuted(
        np.broadcast_to(np.repeat(np.arange(cell.pairs), values), (n, cell.pairs * values)), axis=1
    )
    turn = np.zeros_like(owner)
    for pair in range(cell.pairs):
        mine = owner == pair
        turn[mine] = (mine.cumsum(axis=1) - 1)[mine]
    needles = np.stack([np.take_along_axis(keys, owner, axis=1), drawn[np.arange(n)[:, None], owner, turn]], axis=2)
    tokens = draw_noise(vocabulary.seen_noise, (n, cell.length), generator, noise)
    asked = cell.queries * (2 + values) - 1
    scatter_with_mentions(tokens, needles, keys, cell.length - asked, mentions, generator)

    queried = choose_queries(cell, generator)
    answers = np.take_along_axis(drawn, queried[:, :, None], axis=1)  # [N, Q, values]
    question = np.full((n, cell.queries, 2 + values), vocabulary.query)
    question[:, :, 1] = np.take_along_axis(keys, queried, axis=1)
    question[:, :, 2:] = answers
    first = cell.length - asked
    tokens[:, first:] = question.reshape(n, -1)[:, :-1]
    positions = first + 1 + (2 + values) * np.arange(cell.queries)[:, None] + np.arange(values)
    return RecallBatch(tokens, np.broadcast_to(positions.ravel(), (n, positions.size)), answers.reshape(n, -1))


TASK = Task(generate, minimum_length, labels_per_query=lambda values=4, **_: values)
