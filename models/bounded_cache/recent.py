"""The cache policy of StreamingLLM: keep the first and the latest entries (Xiao et al., arXiv 2309.17453, §3)."""

from dataclasses import dataclass

import torch

from .policy import Decision, Policy, Seen


@dataclass(frozen=True)
class SinksAndRecent(Policy):
    """Keep the first `sinks` entries, the attention sinks, and the latest entries.

    The paper counts rotary positions inside the cache, as `bound_attention` does with `positions_in_cache`.
    """

    sinks: int = 4

    def decide(self, seen: Seen) -> Decision:
        place = seen.real.cumsum(-1)
        return Decision(torch.where(place <= self.sinks, torch.inf, place.float()))
