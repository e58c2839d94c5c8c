"""The cache policy TOVA, token omission via attention (Oren et al., arXiv 2401.06104, §3.2)."""

from dataclasses import dataclass

from .policy import Decision, Policy, Seen


@dataclass(frozen=True)
class Tova(Policy):
    """Drop the entries to which the latest query attends least, averaged over heads: all heads keep the same tokens."""

    window: int = 1

    def decide(self, seen: Seen) -> Decision:
        return Decision(seen.weights[:, :, -1].mean(1, keepdim=True))
