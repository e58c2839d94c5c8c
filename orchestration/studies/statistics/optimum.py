"""The lowest loss at a training cost, and the size and tokens that reach it, by each size's own FLOPs.

FLOPs of a token for each parameter vary with size (logits, attention): one mean value for all sizes moves the frontier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .laws import Law

GRID = 400  # sizes that are tried between the smallest and the largest


@dataclass(frozen=True)
class Costs:
    """FLOPs per training token as a function of model size; arrays `[sizes]`, ascending."""

    n: np.ndarray
    flops_per_token: np.ndarray

    @classmethod
    def of(cls, n: Sequence[float], flops_per_token: Sequence[float]) -> "Costs":
        """The costs of the sizes among cells; cells of one size count as their mean."""
        sizes = np.unique(np.asarray(n, dtype=float))
        values = [np.asarray(flops_per_token, dtype=float)[np.asarray(n) == size].mean() for size in sizes]
        return cls(sizes, np.array(values))

    def at(self, n: np.ndarray) -> np.ndarray:
        """FLOPs of a token at any size: on straight lines of the logarithms between the sizes, and beyond them."""
        log_n, x, y = np.log(np.asarray(n, dtype=float)), np.log(self.n), np.log(self.flops_per_token)
        if len(x) == 1:
            return np.exp(y[0] + log_n - x[0])
        i = np.clip(np.searchsorted(x, log_n) - 1, 0, len(x) - 2)
        slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
        return np.exp(y[i] + slope * (log_n - x[i]))


def frontier(
    law: Law, fitted: np.ndarray, flops: np.ndarray, costs: Costs, n: np.ndarray, most_tokens: float = np.inf
) -> np.ndarray:
    """Lowest loss at each training cost over the sizes `n`, `[..., len(flops)]` for fitted numbers `[..., P]`.

    Args:
        most_tokens: the law is not extrapolated to more tokens: a size that would see more sees these.
    """
    losses, _ = _losses(law, fitted, flops, costs, n, most_tokens)
    return losses.min(axis=-1)


def optimum(law: Law, fitted: np.ndarray, flops: np.ndarray, costs: Costs) -> tuple[np.ndarray, np.ndarray]:
    """N_opt and D_opt at each training cost, `[..., len(flops)]` each, among the sizes from the smallest to the largest.

    A value at the smallest or largest size says that the best lies there or beyond.
    """
    n = np.geomspace(costs.n.min(), costs.n.max(), GRID)
    losses, tokens = _losses(law, fitted, flops, costs, n, np.inf)
    best = losses.argmin(axis=-1)
    return n[best], tokens[np.arange(len(flops)), best]


def _losses(
    law: Law, fitted: np.ndarray, flops: np.ndarray, costs: Costs, n: np.ndarray, most_tokens: float
) -> tuple[np.ndarray, np.ndarray]:
    """Losses `[..., len(flops), len(n)]` and tokens `[len(flops), len(n)]`."""
    tokens = np.minimum(np.asarray(flops)[:, None] / costs.at(n)[None, :], most_tokens)
    columns = {"n": np.broadcast_to(n, tokens.shape).ravel(), "d": tokens.ravel(), "u": tokens.ravel()}
    losses = law.predict(fitted, columns)
    return losses.reshape(*losses.shape[:-1], *tokens.shape), tokens
