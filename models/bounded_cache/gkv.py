"""The cache policy G-KV, which scores entries by present and decayed earlier attention (Liao et al., arXiv 2512.00504, §3)."""

from dataclasses import dataclass

import torch

from .policy import Decision, Policy, Seen
from .rkv import redundancy

SMALLEST = 1e-12


@dataclass(frozen=True)
class GlobalKV(Policy):
    """Keep the entries to which the latest or earlier queries attend: the score is the larger of the local score and the
    decayed previous score.

    The local score is the mean attention of the latest queries, divided by its largest value. With `share` below 1 redundancy is
    taken off as in R-KV, likewise divided by its largest value.

    Attributes:
        decay: of the score of before, at each decision.
        share: of the global score against redundancy; 1 leaves redundancy out.
    """

    window: int = 8
    decay: float = 0.8
    share: float = 0.1
    threshold: float = 0.5
    carries = True

    def decide(self, seen: Seen) -> Decision:
        local = seen.weights.mean(2).masked_fill(~seen.real, 0.0)
        local = local / local.amax(-1, keepdim=True).clamp(min=SMALLEST)
        score = local
        if seen.carried is not None:
            score = torch.maximum(local, self.decay * torch.nan_to_num(seen.carried, nan=0.0))
        if self.share == 1:
            return Decision(score, score)
        alike = redundancy(seen.keys, seen.real, self.threshold)
        alike = alike / alike.amax(-1, keepdim=True).clamp(min=SMALLEST)
        return Decision(self.share * score - (1 - self.share) * alike, score)
