"""The first and the latest entries: StreamingLLM (Xiao et al., arXiv 2309.17453, §3)."""

from dataclasses import dataclass

import torch

from .policy import Decision, Policy, Seen


@dataclass(frozen=True)
class SinksAndRecent(Policy):
    """Keep `sinks` first entries, on which attention rests where nothing else is wanted, and the latest.

    The paper counts rotary positions inside the cache; here keys stay at the positions at which they were read, as in training.
    """

    sinks: int = 4

    def decide(self, seen: Seen) -> Decision:
        place = seen.real.cumsum(-1)
        return Decision(torch.where(place <= self.sinks, torch.inf, place.float()))
