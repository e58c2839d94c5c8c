"""ResourceEconomy: agents mine, trade and use up gold and wood; then `Q a r`: how much of it has a?

After Echo, arXiv 2605.06997, App. G; the paper gives no format, this one is ours. A step is four tokens:
`a MINE r n` (a gets n), `a TRADE r b` (a gives b one), `a BUILD r n` (a uses n up). r is gold or wood, written with the
markers SYS and END, which mean nothing else here; the number n is written as the n-th value. A store holds at most 7.
`pairs` is the number of agents. EASY has 5-15 steps, HARD 40-100 and more noise.
"""

import numpy as np

from ....models.common.errors import UserError
from ..sequences import RecallBatch, TaskCell, place, scatter
from ..task import Task
from ..vocabulary import RecallVocabulary

UNIT, QUESTION, RESOURCES = 4, 3, 2
MOST = 7
EASY = (5, 15)


def minimum_length(pairs: int, queries: int, *, steps: tuple[int, int] = EASY) -> int:
    """Tokens of a sequence of the most steps without any noise."""
    return UNIT * max(steps) + QUESTION


def generate(
    cell: TaskCell, vocabulary: RecallVocabulary, generator: np.random.Generator, *, steps: tuple[int, int] = EASY
) -> RecallBatch:
    """Sequences that ask for one store each; all counts from 0 to 7 are equally often the answer.

    Args:
        steps: the fewest and the most; each sequence draws its number.
    """
    low, high = steps
    if not 1 <= low <= high or high < 2:  # a store is never empty again after the first step that names it
        raise UserError(f"economy: steps is {list(steps)}: the fewest, at least 1, then the most, at least 2")
    if vocabulary.num_values <= MOST:
        raise UserError(
            f"economy: counts from 0 to {MOST} are written as values: the vocabulary has {vocabulary.num_values}"
        )
    n = cell.sequences
    agents = vocabulary.draw_distinct_keys((n, cell.pairs), generator)
    wanted = generator.integers(0, MOST + 1, size=n)
    events = np.zeros((n, high, UNIT), dtype=np.int64)
    length, queried = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    missing = np.arange(n)
    while len(missing):
        # Histories are redrawn until one of their stores holds the wanted count.
        lengths = generator.integers(low, high, size=len(missing), endpoint=True)
        histories, counts, touched = _histories(len(missing), cell.pairs, lengths, high, generator)
        fits = touched & (counts == wanted[missing, None])
        usable = fits.any(axis=1)
        rows = missing[usable]
        events[rows], length[rows] = histories[usable], lengths[usable]
        queried[rows] = np.where(fits, generator.random(fits.shape), -1).argmax(axis=1)[usable]
        missing = missing[~usable]

    units = _units(events, agents, vocabulary)
    tokens = vocabulary.draw(vocabulary.seen_noise, (n, cell.length), generator)
    starts = scatter((n, high), UNIT, cell.length - QUESTION, generator)
    # There is a place for each step of the longest history. Shorter ones use some of the places and leave noise at the others.
    used = generator.random((n, high)).argsort(axis=1).argsort(axis=1) < length[:, None]
    turn = np.maximum(used.cumsum(axis=1) - 1, 0)
    noise = np.take_along_axis(tokens, (starts[:, :, None] + np.arange(UNIT)).reshape(n, -1), axis=1)
    events_in_order = np.take_along_axis(units, turn[:, :, None], axis=1)
    place(tokens, starts, np.where(used[:, :, None], events_in_order, noise.reshape(events_in_order.shape)))

    tokens[:, -3] = vocabulary.query
    tokens[:, -2] = agents[np.arange(n), queried // RESOURCES]
    tokens[:, -1] = _resource(queried % RESOURCES, vocabulary)
    return RecallBatch(tokens, np.full((n, 1), cell.length - 1), vocabulary.values.start + wanted[:, None])


def _histories(
    n: int, agents: int, lengths: np.ndarray, most: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random valid histories.

    Returns:
        events `[n, most, 4]` (agent, action 0 mine 1 trade 2 build, resource, amount or partner), counts and whether a
        step named the store, both `[n, agents * 2]`.
    """
    events = np.zeros((n, most, UNIT), dtype=np.int64)
    counts = np.zeros((n, agents * RESOURCES), dtype=np.int64)
    touched = np.zeros(counts.shape, dtype=bool)
    row = np.arange(n)
    agent, partner = generator.integers(0, agents, size=(2, most, n))
    resource = generator.integers(0, RESOURCES, size=(most, n))
    actions = generator.integers(0, 3, size=(most, n))
    share = generator.random((most, n), dtype=np.float32)
    for step in range(most):
        live = step < lengths
        mine, theirs = agent[step] * RESOURCES + resource[step], partner[step] * RESOURCES + resource[step]
        has, action = counts[row, mine], actions[step]
        # Actions that are not possible are replaced by possible ones.
        trades = (action == 1) & (has > 0) & (counts[row, theirs] < MOST) & (mine != theirs)
        builds = ((action == 2) & (has > 0)) | (~trades & (has == MOST))
        room = np.where(builds, has, MOST - has)
        amount = np.where(trades, 1, 1 + (share[step] * room).astype(np.int64))
        counts[row, mine] = has + live * np.where(trades | builds, -amount, amount)
        counts[row, theirs] += live & trades
        touched[row, mine] |= live
        touched[row, theirs] |= live & trades
        events[:, step, 1] = np.where(trades, 1, np.where(builds, 2, 0))
        events[:, step, 3] = np.where(trades, partner[step], amount)
    events[:, :, 0], events[:, :, 2] = agent.T, resource.T
    return events, counts, touched


def _units(events: np.ndarray, agents: np.ndarray, vocabulary: RecallVocabulary) -> np.ndarray:
    """Events as tokens, `[N, steps, 4]`."""
    agent, action, resource, last = np.moveaxis(events, 2, 0)
    markers = np.array([vocabulary.mine, vocabulary.trade, vocabulary.build])
    partner = np.take_along_axis(agents, np.where(action == 1, last, 0), axis=1)
    return np.stack(
        [
            np.take_along_axis(agents, agent, axis=1),
            markers[action],
            _resource(resource, vocabulary),
            np.where(action == 1, partner, vocabulary.values.start + last),
        ],
        axis=2,
    )


def _resource(which: np.ndarray, vocabulary: RecallVocabulary) -> np.ndarray:
    return np.where(which == 0, vocabulary.system, vocabulary.end)


TASK = Task(
    generate,
    minimum_length,
    choices=lambda vocabulary: vocabulary.values[: MOST + 1],
    most_queries=1,
)
