"""The cache policy SnapKV, which keeps the entries that the latest queries attend to (Li et al., arXiv 2404.14469, §4)."""

from dataclasses import dataclass

from .policy import Decision, Policy, Seen, smoothed


@dataclass(frozen=True)
class SnapKV(Policy):
    """Keep, head by head, what the latest `window` queries attend to together, smoothed over neighbouring entries.

    The paper compresses a prompt once, after all of it was read; here every piece of a prompt and every step is cut to the budget.

    Attributes:
        neighbours: entries over which the maximum is taken.
    """

    window: int = 32
    neighbours: int = 7

    def decide(self, seen: Seen) -> Decision:
        return Decision(smoothed(seen.weights.sum(2), self.neighbours))
