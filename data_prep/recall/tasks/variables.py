"""VariableTracking: `x1 = v`, `x2 = x1`, ... in noise, then: which variables hold v? After RULER (arXiv 2404.06654).

An assignment is `x RES v` or `x RES y`. `pairs` chains of `variables` each; every chain has a value of its own, so the others
are its distractors. Asked is `Q v x1 CALL x2 CALL ... CALL xn`, in the order of assignment; each of the n is one answer.
"""

import numpy as np

from ....models.common.errors import UserError
from ..sequences import RecallBatch, TaskCell, choose_queries, place, scatter
from ..task import Task, the_keys
from ..vocabulary import RecallVocabulary

UNIT = 3


def minimum_length(pairs: int, queries: int, *, variables: int = 3) -> int:
    """Tokens of a sequence without any noise."""
    return UNIT * pairs * variables + queries * (1 + 2 * variables) - 1


def generate(
    cell: TaskCell, vocabulary: RecallVocabulary, generator: np.random.Generator, *, variables: int = 3
) -> RecallBatch:
    """Generate sequences in which noise fills the room that assignments and queries leave.

    Args:
        variables: of a chain; 1 asks only which variable got the value.
    """
    if variables < 1:
        raise UserError(f"variables: variables is {variables}: a chain has at least one")
    if cell.pairs > vocabulary.num_values:
        raise UserError(f"variables: {cell.pairs} chains: the vocabulary has {vocabulary.num_values} values")
    n, shape = cell.sequences, (cell.sequences, cell.pairs, variables)
    names = vocabulary.draw_distinct_keys((n, cell.pairs * variables), generator).reshape(shape)
    values = vocabulary.draw_distinct(vocabulary.values, (n, cell.pairs), generator)
    sources = np.concatenate([values[:, :, None], names[:, :, :-1]], axis=2)
    units = np.stack([names, np.full(shape, vocabulary.result), sources], axis=3).reshape(n, -1, UNIT)

    tokens = vocabulary.draw(vocabulary.seen_noise, (n, cell.length), generator)
    queries_length = cell.queries * (1 + 2 * variables) - 1
    starts = scatter(units.shape[:2], UNIT, cell.length - queries_length, generator)
    # Places are dealt to the chains at random; within a chain, assignments come in order.
    turns = np.sort(generator.random(starts.shape).argsort(axis=1).reshape(shape), axis=2).reshape(n, -1)
    place(tokens, np.take_along_axis(starts, turns, axis=1), units)

    queried = choose_queries(cell, generator)
    answers = np.take_along_axis(names, queried[:, :, None], axis=1)  # [N, Q, variables]
    question = np.full((n, cell.queries, 2 + 2 * variables), vocabulary.call)
    question[:, :, 0] = vocabulary.query
    question[:, :, 1] = np.take_along_axis(values, queried, axis=1)
    question[:, :, 2::2] = answers
    question = question[:, :, :-1]  # no CALL after the last variable
    first = cell.length - queries_length
    tokens[:, first:] = question.reshape(n, -1)[:, :-1]
    width = 1 + 2 * variables
    positions = first + 1 + width * np.arange(cell.queries)[:, None] + 2 * np.arange(variables)
    return RecallBatch(tokens, np.broadcast_to(positions.ravel(), (n, positions.size)), answers.reshape(n, -1))


TASK = Task(
    generate,
    minimum_length,
    choices=the_keys,
    num_keys=lambda pairs, variables=3: pairs * variables,
    labels_per_query=lambda variables=3: variables,
)
