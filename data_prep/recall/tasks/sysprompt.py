"""SysPrompt: facts in a system prompt, a long scratchpad, then questions about the facts.

`SYS k v ... k v END`, noise, `Q k v ... Q k`. Echo, arXiv 2605.06997, §4.1: EASY has a gap of 10-30, HARD of 150-300.
"""

import numpy as np

from ..noise import draw_noise
from ..sequences import RecallBatch, TaskCell, append_queries, draw_pairs, queries_length, scatter_with_mentions
from ..task import Task
from ..vocabulary import RecallVocabulary


def minimum_length(pairs: int, queries: int, *, decoys: int = 0, mentions: float = 0.0, noise: str = "uniform") -> int:
    """Tokens of a sequence without any noise."""
    return 2 + 2 * pairs + 2 * decoys + queries_length(queries)


def generate(
    cell: TaskCell,
    vocabulary: RecallVocabulary,
    generator: np.random.Generator,
    *,
    decoys: int = 0,
    mentions: float = 0.0,
    noise: str = "uniform",
) -> RecallBatch:
    """Generate sequences whose gap fills the room that prompt and queries leave.

    Args:
        decoys: pairs `k' v'` with further keys, scattered in the gap and never queried.
        mentions: keys of the prompt in the gap without their value, as a share of the noise; see `scatter_with_mentions`.
        noise: its kind; see `draw_noise`.
    """
    keys, values = draw_pairs(cell, vocabulary, generator, decoys=decoys)
    units = np.stack([keys, values], axis=2)  # [N, pairs + decoys, 2]
    tokens = draw_noise(vocabulary.seen_noise, (cell.sequences, cell.length), generator, noise)
    prompt = 2 * cell.pairs
    tokens[:, 0] = vocabulary.system
    tokens[:, 1 : prompt + 1] = units[:, : cell.pairs].reshape(cell.sequences, prompt)
    tokens[:, prompt + 1] = vocabulary.end
    gap = cell.length - prompt - 2 - queries_length(cell.queries)
    scatter_with_mentions(
        tokens, units[:, cell.pairs :], keys[:, : cell.pairs], gap, mentions, generator, first=prompt + 2
    )
    return append_queries(tokens, keys, values, cell, vocabulary, generator)


TASK = Task(generate, minimum_length, num_keys=lambda pairs, decoys=0, **_: pairs + decoys)
