"""The cache policy of cascading KV caches, which thins tokens out the older they are (Willette et al., arXiv 2406.17808, §3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .policy import Decision, Policy, Seen


@dataclass(frozen=True)
class Cascading(Policy):
    """Keep the first `sinks` entries, the attention sinks, and a cascade of sub-caches of equal size: the first takes every
    token, and each further one every second token that leaves the one before it.

    A token that is not taken competes with the token that its sub-cache took last. The one with the smaller average attention is
    dropped; of equal ones the older. Sub-cache i thus takes one of 2^i tokens, and reaches 2^i times as far back as the first. The
    averages are exponential moving averages over queries, mu <- decay mu + (1 - decay) a, of the attention a that a token gets,
    the mean of the heads: all heads keep the same tokens. The first sub-cache also has the entries that remain when
    the budget is divided.

    The paper counts rotary positions inside the cache, as `bound_attention` does with `positions_in_cache`. Of the queries of a
    piece of a prompt the latest `window` are averaged.

    Attributes:
        sinks: first entries that are never dropped.
        levels: sub-caches; fewer where the budget has no room for `window` entries in each.
        decay: of the moving average, for each query.
    """

    window: int = 8
    sinks: int = 4
    levels: int = 4
    decay: float = 0.999
    carries = True

    def __post_init__(self):
        super().__post_init__()
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1: it is {self.levels}")

    def decide(self, seen: Seen) -> Decision:
        average = self._average(seen)
        least = max(1, self.window)
        sinks = min(self.sinks, seen.capacity - least)
        levels = min(self.levels, max(1, (seen.capacity - sinks) // least))
        # All heads have the same tokens, so the first one stands for them.
        kept = survivors(average.mean(1), seen.real[:, 0], seen.position, seen.capacity, sinks, levels)
        return Decision(kept[:, None].float(), average)

    def _average(self, seen: Seen) -> Tensor:
        """The moving average of the attention of all queries up to now, fp32 `[B, H, N]`."""
        before = torch.full_like(seen.weights[:, :, 0], torch.nan) if seen.carried is None else seen.carried
        queries = seen.weights.shape[2]
        new = (before.isnan() & seen.real).sum(-1, keepdim=True).clamp(max=queries)  # queries since the last decision
        age = torch.arange(queries - 1, -1, -1, device=new.device)  # 0 for the latest query
        share = (1 - self.decay) * self.decay**age * (age < new)  # [B, H, W]
        return self.decay**new * before.nan_to_num(0.0) + (share[..., None] * seen.weights).sum(2)


def survivors(score: Tensor, real: Tensor, position: Tensor, capacity: int, sinks: int, levels: int) -> Tensor:
    """Which entries a cascade of `levels` sub-caches keeps when its latest entries come in, one after the other: bool `[B, N]`.

    Entries are in the order of their age in all sub-caches, so that each contest is between neighbours: the token that leaves one
    sub-cache, and the latest of the next.

    Args:
        score: `[B, N]`, larger for what is kept in a contest.
        real: `[B, N]`, False at padding.
        position: `[B]`, tokens that the rows have had, the latest entries included.
        capacity: entries that are kept, at least `sinks + levels`.
    """
    size = (capacity - sinks) // levels
    count = real.sum(1, keepdim=True)
    surplus = (count - capacity).clamp(min=0)  # tokens that come into a full cascade
    first = position[:, None] - surplus - sinks  # their number in the row, without sinks
    place = torch.arange(score.shape[1], device=score.device)
    order = (~real).int().argsort(dim=1, stable=True)  # padding last
    for level in range(1, levels):
        start, stride = sinks + (levels - level) * size, 2 ** (level - 1)
        # The tokens numbered first, first + 1, ... push a token into this level if their number is a multiple of the stride. These
        # stand from place `start` on; every second of them is not taken.
        pushes, number = _multiples(first, surplus, stride)
        turn = place - start
        contest = (turn >= 0) & (turn < pushes) & ((number + turn) % 2 == 1)
        ranked = score.gather(1, order)
        newer_wins = ranked >= ranked.roll(1, 1)
        dropped = (contest & ~newer_wins) | (contest & newer_wins).roll(-1, 1)
        order = order.gather(1, dropped.int().argsort(dim=1, stable=True))
    pushes, _ = _multiples(first, surplus, 2 ** (levels - 1))
    # The contests have moved what was dropped behind `capacity + pushes` entries; the last level loses its oldest.
    kept = (place < capacity + pushes) & ((place < sinks) | (place >= sinks + pushes))
    return torch.zeros_like(real).scatter(1, order, kept) & real


def _multiples(first: Tensor, count: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """How many of the numbers `first` to `first + count - 1` are multiples of the stride, and the first of these divided by it."""
    number = (first + stride - 1) // stride
    return (first + count - 1) // stride - number + 1, number
