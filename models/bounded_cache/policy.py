"""The interface of cache policies: a policy gives each entry of a KV cache a score, and the entries with the highest scores are
kept."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Seen(NamedTuple):
    """The input of a cache policy: the entries of a layer's cache, oldest first, when some must be dropped.

    Attributes:
        weights: fp32 `[B, H, W, N]`, attention of the latest W queries to the N entries, each row a softmax; a query that does not
            exist yet, in rows of fewer tokens, has zeros.
        keys: `[B, H, N, D]`, rotated.
        real: bool `[B, H, N]`, False where an entry is padding; these go first whatever their score.
        carried: fp32 `[B, H, N]`, what the policy said of each entry when it was last asked, NaN for entries since; None for
            policies that carry nothing.
        position: int64 `[B]`, tokens that each row has had.
        capacity: entries of each head that are kept.
    """

    weights: Tensor
    keys: Tensor
    real: Tensor
    carried: Tensor | None
    position: Tensor
    capacity: int


class Decision(NamedTuple):
    """The output of a cache policy: `scores` `[B, H, N]`, or `[B, 1, N]` for all heads alike; `carried` `[B, H, N]`, which the
    policy gets back at its next decision, or None."""

    scores: Tensor
    carried: Tensor | None = None


@dataclass(frozen=True)
class Policy(ABC):
    """A cache policy: decides which entries of a bounded KV cache are kept.

    Attributes:
        window: latest queries whose attention the policy reads, which the cache then keeps; their entries always stay.
        carries: whether the cache keeps a number for each entry and head between decisions.
    """

    window: int = 0
    carries = False

    def __post_init__(self):
        if self.window < 0:
            raise ValueError(f"window must not be negative: it is {self.window}")

    @abstractmethod
    def decide(self, seen: Seen) -> Decision:
        """Score the entries."""


def smoothed(scores: Tensor, width: int) -> Tensor:
    """The maximum over `width` neighbouring entries, `[B, H, N]`, so that the neighbours of an important entry are kept with it."""
    return F.max_pool1d(scores, width, stride=1, padding=width // 2) if width > 1 else scores
