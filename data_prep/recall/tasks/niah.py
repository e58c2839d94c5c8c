"""NIAH: needles `k v` in a haystack, then questions `Q k v ... Q k`. Echo, arXiv 2605.06997, §4.1.

Haystacks: noise that training shows ("seen"), noise that it never shows ("unseen"), noise that no choice of a model saw
either ("new"; see `RecallVocabulary`), pairs `k' v'` of other keys that
are never queried and fill the state ("decoys"), and real text in which only needles and questions are reserved tokens ("text").
"""

import numpy as np

from ....models.common.errors import UserError
from ..noise import draw_noise
from ..sequences import (
    RecallBatch,
    TaskCell,
    append_queries,
    draw_pairs,
    place,
    queries_length,
    scatter,
    scatter_with_mentions,
)
from ..task import Task
from ..vocabulary import RecallVocabulary

UNIT = 2
HAYSTACKS = ("seen", "unseen", "new", "decoys", "text")


def minimum_length(
    pairs: int,
    queries: int,
    *,
    depth: float | None = None,
    haystack: str = "seen",
    mentions: float = 0.0,
    noise: str = "uniform",
) -> int:
    """Tokens of a sequence without any hay."""
    return UNIT * pairs + queries_length(queries)


def generate(
    cell: TaskCell,
    vocabulary: RecallVocabulary,
    generator: np.random.Generator,
    *,
    depth: float | None = None,
    haystack: str = "seen",
    mentions: float = 0.0,
    noise: str = "uniform",
    text: np.ndarray | None = None,
) -> RecallBatch:
    """Generate sequences whose haystack fills the room that needles and queries leave.

    Args:
        depth: where the needles lie, side by side, as a share of the hay before them: 0 at the start, 1 right before
            the questions. None scatters them.
        haystack: one of `HAYSTACKS`.
        mentions: keys of needles in the hay without their value, as a share of the hay; see `scatter_with_mentions`. Not
            with a depth, nor among decoys.
        noise: the kind of "seen", "unseen" and "new" hay; see `draw_noise`.
        text: token ids `[n]` for the haystack "text". Each sequence takes them from a random place on, and from the
            beginning again where they end.
    """
    if depth is not None and not 0 <= depth <= 1:
        raise UserError(f"niah: depth is {depth}: it is a share of the haystack, from 0 to 1")
    if haystack not in HAYSTACKS:
        raise UserError(f"niah: haystack is {haystack!r}: choose one of {', '.join(HAYSTACKS)}")
    if mentions and (depth is not None or haystack == "decoys"):
        raise UserError("niah: mentions stand between scattered needles in noise or text: leave out depth and decoys")
    if haystack == "new" and not vocabulary.num_new_noise:
        raise UserError('niah: haystack "new" needs ids of its own: give the vocabulary `num_new_noise`')
    space = cell.length - queries_length(cell.queries)

    if haystack == "decoys":
        keys = vocabulary.draw_distinct_keys((cell.sequences, vocabulary.num_keys), generator)
        values = vocabulary.draw(vocabulary.values, (cell.sequences, cell.pairs), generator)
        tokens = _decoys(cell, keys[:, cell.pairs :], vocabulary, generator)
        keys, grid = keys[:, : cell.pairs], UNIT  # a needle between two decoys, not inside one
    else:
        keys, values = draw_pairs(cell, vocabulary, generator)
        grid = 1
        if haystack == "text":
            tokens = _text(cell, text, vocabulary, generator)
        else:
            hay = getattr(vocabulary, f"{haystack}_noise")
            tokens = draw_noise(hay, (cell.sequences, cell.length), generator, noise)

    needles = np.stack([keys, values], axis=2)
    if depth is not None:
        first = grid * round(depth * (space // grid - UNIT // grid * cell.pairs))
        place(tokens, np.broadcast_to(first + UNIT * np.arange(cell.pairs), keys.shape), needles)
    elif mentions:
        scatter_with_mentions(tokens, needles, keys, space, mentions, generator)
    else:
        place(tokens, grid * scatter(keys.shape, UNIT // grid, space // grid, generator), needles)
    return append_queries(tokens, keys, values, cell, vocabulary, generator)


def _decoys(
    cell: TaskCell, others: np.ndarray, vocabulary: RecallVocabulary, generator: np.random.Generator
) -> np.ndarray:
    """A haystack of decoy pairs whose keys are drawn from `others` `[N, n]`; a repeated key may have another value."""
    tokens = vocabulary.draw(vocabulary.values, (cell.sequences, cell.length), generator)
    shape = tokens[:, 0::2].shape
    tokens[:, 0::2] = np.take_along_axis(others, generator.integers(0, others.shape[1], size=shape), axis=1)
    if (cell.length - queries_length(cell.queries)) % 2:  # no room for the value of the last key
        tokens[:, cell.length - queries_length(cell.queries) - 1] = vocabulary.seen_noise.start
    return tokens


def _text(
    cell: TaskCell, text: np.ndarray | None, vocabulary: RecallVocabulary, generator: np.random.Generator
) -> np.ndarray:
    if text is None or len(text) == 0:
        raise UserError('niah: haystack "text" needs text: evaluate on a dataset that holds some out')
    if ((text >= vocabulary.first_id) & (text < vocabulary.first_id + vocabulary.size)).any():
        raise UserError("niah: the text of the haystack holds reserved tokens, so a needle could be in it by accident")
    starts = generator.integers(0, len(text), size=(cell.sequences, 1))
    return text[(starts + np.arange(cell.length)) % len(text)].astype(np.int64)


TASK = Task(
    generate,
    minimum_length,
    # Decoys need at least one key that no needle has.
    num_keys=lambda pairs, haystack="seen", **_: pairs + (haystack == "decoys"),
    needs_text=lambda haystack="seen", **_: haystack == "text",
)
