"""Parts that the recall tasks share: a background of noise, units placed on it, queries at the end."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...models.common.errors import UserError
from .vocabulary import RecallVocabulary

MENTION = 2  # tokens: the key, and what follows it


@dataclass(frozen=True)
class RecallBatch:
    """`N` sequences of `L` tokens that ask for `Q` answers each.

    Attributes:
        tokens: int64 `[N, L]`.
        query_positions: int64 `[N, Q]`; where an answer is predicted, ascending.
        answers: int64 `[N, Q]`; the right token after each of these positions.
    """

    tokens: np.ndarray
    query_positions: np.ndarray
    answers: np.ndarray

    def rows(self, start: int, stop: int) -> "RecallBatch":
        """Sequences `start` to `stop`, `stop` excluded."""
        return RecallBatch(self.tokens[start:stop], self.query_positions[start:stop], self.answers[start:stop])

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 `[N, L]`; the answer at each query position, 0 elsewhere."""
        labels = np.zeros_like(self.tokens)
        np.put_along_axis(labels, self.query_positions, self.answers, axis=1)
        return labels

    @cached_property
    def loss_mask(self) -> np.ndarray:
        """float32 `[N, L]`; 1 where a label counts."""
        loss_mask = np.zeros(self.tokens.shape, dtype=np.float32)
        np.put_along_axis(loss_mask, self.query_positions, np.float32(1), axis=1)
        return loss_mask


@dataclass(frozen=True)
class TaskCell:
    """One cell of a recall task's grid: number of sequences, tokens of each, pairs stored and pairs queried in each."""

    sequences: int
    length: int
    pairs: int
    queries: int


def draw_pairs(
    cell: TaskCell, vocabulary: RecallVocabulary, generator: np.random.Generator, *, decoys: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw keys (distinct in a sequence) and values (independent), int64 `[N, pairs + decoys]` each."""
    shape = (cell.sequences, cell.pairs + decoys)
    return vocabulary.draw_distinct_keys(shape, generator), vocabulary.draw(vocabulary.values, shape, generator)


def choose_queries(cell: TaskCell, generator: np.random.Generator) -> np.ndarray:
    """Draw the indices of the queried pairs, in the order of the queries: int64 `[N, Q]`, distinct in a row."""
    order = generator.random((cell.sequences, cell.pairs), dtype=np.float32).argsort(axis=1)
    return order[:, : cell.queries]


def place(tokens: np.ndarray, starts: np.ndarray, units: np.ndarray) -> None:
    """Write units of tokens `[N, n, width]` into `tokens` `[N, L]` at `starts` `[N, n]`."""
    positions = starts[:, :, None] + np.arange(units.shape[2])
    np.put_along_axis(tokens, positions.reshape(len(tokens), -1), units.reshape(len(tokens), -1), axis=1)


def scatter(shape: tuple[int, int], width: int, space: int, generator: np.random.Generator) -> np.ndarray:
    """Random starts `[N, n]`, ascending, of `n` units of `width` tokens in `space` positions, without overlap.

    The room that the units leave is cut at `n` uniform points, so `space >= n * width` must hold.
    """
    cuts = np.sort(generator.integers(0, space - shape[1] * width, size=shape, endpoint=True), axis=1)
    return cuts + np.arange(shape[1]) * width


def scatter_with_mentions(
    tokens: np.ndarray,
    units: np.ndarray,
    keys: np.ndarray,
    space: int,
    mentions: float,
    generator: np.random.Generator,
    *,
    first: int = 0,
) -> None:
    """Write units at random places, in their order, and mentions between them: keys without a value, as a name occurs in text.

    The token after a mention stays as it is. If that is noise, a mention is never taken for a pair or a link.

    Args:
        tokens: int64 `[N, L]`, written to.
        units: `[N, n, width]`.
        keys: `[N, m]`, each mention is one of its row.
        space: positions that units and mentions share, from `first` on.
        mentions: share of the positions that units leave which hold a mention, at most one in two; 0 for none.
    """
    count, width = units.shape[1:]
    if not 0 <= mentions <= 0.5:
        raise UserError(f"mentions is {mentions}: it is a share of the noise, from 0 to 0.5")
    mentioned = int(mentions * (space - count * width))
    if not mentioned:
        place(tokens, first + scatter((len(units), count), width, space, generator), units)
        return
    n = len(units)
    is_mention = np.broadcast_to(np.arange(count + mentioned) >= count, (n, count + mentioned))
    is_mention = generator.permuted(is_mention, axis=1)
    widths = np.where(is_mention, MENTION, width)
    room = space - count * width - mentioned * MENTION
    cuts = np.sort(generator.integers(0, room, size=widths.shape, endpoint=True), axis=1)
    starts = first + cuts + np.cumsum(widths, axis=1) - widths
    place(tokens, starts[~is_mention].reshape(n, count), units)
    which = generator.integers(0, keys.shape[1], size=(n, mentioned))
    place(tokens, starts[is_mention].reshape(n, mentioned), np.take_along_axis(keys, which, axis=1)[:, :, None])


def queries_length(queries: int) -> int:
    """Tokens that `append_queries` needs: `Q k v` for each query but the last, whose value is only predicted."""
    return 3 * queries - 1


def append_queries(
    tokens: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    cell: TaskCell,
    vocabulary: RecallVocabulary,
    generator: np.random.Generator,
) -> RecallBatch:
    """End the sequences with `Q k v Q k v ... Q k`: queries, each followed by its right value but for the last.

    Queried are the first `pairs` keys, each at most once.

    A value follows its question, one position after the label, so no label is among the inputs it is predicted from.
    """
    queried = choose_queries(cell, generator)
    queried_keys = np.take_along_axis(keys, queried, axis=1)
    answers = np.take_along_axis(values, queried, axis=1)
    units = np.stack([np.full_like(queried_keys, vocabulary.query), queried_keys, answers], axis=2)
    first = cell.length - queries_length(cell.queries)
    tokens[:, first:] = units.reshape(cell.sequences, -1)[:, :-1]
    positions = np.broadcast_to(first + 1 + 3 * np.arange(cell.queries), queried.shape)
    return RecallBatch(tokens, positions, answers)
