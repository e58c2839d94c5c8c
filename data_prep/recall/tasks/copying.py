"""Copying: a passage at the start is repeated word for word after a long gap (Jelassi et al., arXiv 2402.01032, §3).

`SYS t ... t END`, noise, `Q t ... t`: each token of the passage is predicted from those before it. The passage is `pairs` groups of
`width` tokens, drawn from the values with repetition, so that a token alone does not tell which one follows.
"""

import numpy as np

from ....models.common.errors import UserError
from ..noise import draw_noise
from ..sequences import RecallBatch, TaskCell
from ..task import Task
from ..vocabulary import RecallVocabulary


def minimum_length(pairs: int, queries: int, *, width: int = 4, noise: str = "uniform") -> int:
    """Tokens of a sequence without a gap."""
    return 2 + width * pairs + width * queries


def generate(
    cell: TaskCell,
    vocabulary: RecallVocabulary,
    generator: np.random.Generator,
    *,
    width: int = 4,
    noise: str = "uniform",
) -> RecallBatch:
    """Generate sequences whose gap fills the room that the passage and its copy leave.

    Args:
        width: tokens of a group; the first `queries` groups are asked for.
        noise: the kind of the gap's; see `draw_noise`.
    """
    if width < 1:
        raise UserError(f"copying: width is {width}: a group has at least one token")
    passage = vocabulary.draw(vocabulary.values, (cell.sequences, cell.pairs * width), generator)
    copied = passage[:, : cell.queries * width]
    tokens = draw_noise(vocabulary.seen_noise, (cell.sequences, cell.length), generator, noise)
    tokens[:, 0] = vocabulary.system
    tokens[:, 1 : passage.shape[1] + 1] = passage
    tokens[:, passage.shape[1] + 1] = vocabulary.end
    first = cell.length - copied.shape[1]
    tokens[:, first] = vocabulary.query
    tokens[:, first + 1 :] = copied[:, :-1]
    positions = np.broadcast_to(first + np.arange(copied.shape[1]), copied.shape)
    return RecallBatch(tokens, positions, copied)


TASK = Task(generate, minimum_length, num_keys=lambda pairs, **_: 0, labels_per_query=lambda width=4, **_: width)
