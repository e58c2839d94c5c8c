"""NIAH: needles `k v` in a haystack of noise, then questions `Q k v ... Q k`. Echo, arXiv 2605.06997, §4.1."""

import numpy as np

from ...models.errors import UserError
from .sequences import Cell, RecallBatch, ask, asked_length, draw_pairs, place, scatter
from .vocabulary import RecallVocabulary

UNIT = 2


def minimum_length(pairs: int, queries: int, *, depth: float | None = None, haystack: str = "seen") -> int:
    """Tokens of a sequence without any hay."""
    return UNIT * pairs + asked_length(queries)


def generate(
    cell: Cell,
    vocabulary: RecallVocabulary,
    generator: np.random.Generator,
    *,
    depth: float | None = None,
    haystack: str = "seen",
) -> RecallBatch:
    """Sequences whose haystack takes the room that needles and questions leave.

    Args:
        depth: where the needles lie, side by side, as a share of the hay before them: 0 at the start, 1 right before
            the questions. None scatters them.
        haystack: "seen" is the noise of the other tasks, "unseen" is noise that no training sequence holds.
    """
    if depth is not None and not 0 <= depth <= 1:
        raise UserError(f"niah: depth is {depth}: it is a share of the haystack, from 0 to 1")
    hays = {"seen": vocabulary.seen_noise, "unseen": vocabulary.unseen_noise}
    if haystack not in hays:
        raise UserError(f"niah: haystack is {haystack!r}: choose one of {', '.join(hays)}")

    keys, values = draw_pairs(cell, vocabulary, generator)
    tokens = vocabulary.draw(hays[haystack], (cell.sequences, cell.length), generator)
    space = cell.length - asked_length(cell.queries)
    if depth is None:
        starts = scatter(keys.shape, UNIT, space, generator)
    else:
        first = round(depth * (space - UNIT * cell.pairs))
        starts = np.broadcast_to(first + UNIT * np.arange(cell.pairs), keys.shape)
    place(tokens, starts, np.stack([keys, values], axis=2))
    return ask(tokens, keys, values, cell, vocabulary, generator)
