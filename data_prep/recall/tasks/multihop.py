"""MultiHop: chains `k1 k2`, `k2 v` in any order in noise, then questions `Q k1` about the end of the chain.

Echo, arXiv 2605.06997, §4.1, with two hops. Links are two tokens wide and noise is neither key nor value, so the tokens between
two stretches of noise fall into links in one way only.
"""

import numpy as np

from ....models.common.errors import UserError
from ..noise import draw_noise
from ..sequences import RecallBatch, TaskCell, append_queries, queries_length, scatter_with_mentions
from ..task import Task
from ..vocabulary import RecallVocabulary

UNIT = 2


def minimum_length(pairs: int, queries: int, *, hops: int = 2, mentions: float = 0.0, noise: str = "uniform") -> int:
    """Tokens of a sequence without any noise."""
    return UNIT * pairs * hops + queries_length(queries)


def generate(
    cell: TaskCell,
    vocabulary: RecallVocabulary,
    generator: np.random.Generator,
    *,
    hops: int = 2,
    mentions: float = 0.0,
    noise: str = "uniform",
) -> RecallBatch:
    """Generate sequences of `pairs` chains of `hops` links each, all links scattered in random order.

    Args:
        hops: links of a chain, the one to the value included; 1 is plain recall.
        mentions: keys of the chains in the noise without a link, as a share of the noise; see `scatter_with_mentions`.
        noise: its kind; see `draw_noise`.
    """
    if hops < 1:
        raise UserError(f"multihop: hops is {hops}: a chain has at least one link")
    shape = (cell.sequences, cell.pairs, hops)
    keys = vocabulary.draw_distinct_keys((cell.sequences, cell.pairs * hops), generator).reshape(shape)
    values = vocabulary.draw(vocabulary.values, (cell.sequences, cell.pairs), generator)
    targets = np.concatenate([keys[:, :, 1:], values[:, :, None]], axis=2)
    links = np.stack([keys, targets], axis=3).reshape(cell.sequences, -1, UNIT)
    links = np.take_along_axis(links, generator.random(links.shape[:2]).argsort(axis=1)[:, :, None], axis=1)
    tokens = draw_noise(vocabulary.seen_noise, (cell.sequences, cell.length), generator, noise)
    space = cell.length - queries_length(cell.queries)
    scatter_with_mentions(tokens, links, keys.reshape(cell.sequences, -1), space, mentions, generator)
    return append_queries(tokens, keys[:, :, 0], values, cell, vocabulary, generator)


TASK = Task(generate, minimum_length, num_keys=lambda pairs, hops=2, **_: pairs * hops)
