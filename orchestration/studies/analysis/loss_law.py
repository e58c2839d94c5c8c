"""The loss law L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3), with intervals.

N: parameters without embeddings; D: training tokens; L: held-out loss. Fitted are log A, log B, log E, alpha and beta,
by the Huber loss on log L from a grid of starts.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .solver import minimise

# log A, log B, log E, alpha, beta. Exponents above 2.5, or terms that vanish at every size, cannot be identified.
LOWER = np.array([-10.0, -10.0, -20.0, 0.0, 0.0])
UPPER = np.array([60.0, 60.0, 5.0, 2.5, 2.5])
NUM_PARAMETERS = 5
LEAST_SIZES = 4  # of a law in N alone, which has three parameters
NO_TERM = -1000.0  # log A or log B of an absent term
# Chinchilla's grid (§D.3), thinned: every start converges to a minimum, and 36 of them to the lowest.
STARTS = list(itertools.product((1.0, 8.0), (1.0, 8.0), (-1.0, 0.5), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0)))


@dataclass(frozen=True)
class LossFit:
    """A fitted law and its bootstrap.

    Attributes:
        parameters: log A, log B, log E, alpha, beta.
        resampled: `[resamples, 5]`, the parameters of every resample.
        residuals: `[n]`, log of measured over fitted.
        scale: standard deviation of a cell's noise in log L, estimated with the degrees of freedom.
    """

    parameters: np.ndarray
    resampled: np.ndarray
    residuals: np.ndarray
    scale: float

    @property
    def degrees_of_freedom(self) -> int:
        return len(self.residuals) - NUM_PARAMETERS


def predict(parameters: np.ndarray, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
    """L at `n` parameters and `d` tokens, both `[m]`: `[..., m]` for parameters `[..., 5]`."""
    log_n, log_d = np.log(np.atleast_1d(n).astype(float)), np.log(np.atleast_1d(d).astype(float))
    parameters = np.atleast_2d(parameters)
    return np.exp(_log_loss(parameters, log_n, log_d)[0]).squeeze()


def fit_loss(
    n: Sequence[float], d: Sequence[float], loss: Sequence[float], *, delta: float, bootstrap: int, seed: int
) -> LossFit:
    """Fit the law to cells and resample it.

    The bootstrap resamples residuals and keeps the design: with a few cells, drawing cells would leave sizes out. A
    robust fit passes through some of its cells, so residuals are rescaled to the noise estimated with the degrees of freedom.

    Args:
        n, d, loss: `[cells]`.
        delta: of the Huber loss on log L.

    Raises:
        ValueError: fewer than six cells, or N or D do not vary.
    """
    log_n, log_d, log_loss = (np.log(np.asarray(values, dtype=float)) for values in (n, d, loss))
    if len(log_loss) <= NUM_PARAMETERS:
        raise ValueError(f"{len(log_loss)} cells are too few for five parameters: six at least")
    for name, values in (("sizes", log_n), ("token budgets", log_d)):
        if len(np.unique(values)) < 3:
            raise ValueError(f"{len(np.unique(values))} {name} do not tell a power law from a constant: three at least")

    def model(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _log_loss(parameters, log_n, log_d)

    starts = _starts(log_n, log_d, log_loss)
    solve = dict(delta=delta, lower=LOWER, upper=UPPER)
    solutions, losses = minimise(model, log_loss, starts, **solve)
    best = solutions[np.argmin(losses)]
    predicted, jacobian = (values[0] for values in model(best[None]))
    residuals = log_loss - predicted
    freedom = len(log_loss) - NUM_PARAMETERS
    leverage = np.clip(_leverage(jacobian), 0.0, 0.95)
    spread = residuals / np.sqrt(1 - leverage)
    spread = spread - spread.mean()
    scale = float(np.sqrt((residuals**2).sum() / freedom))
    spread *= scale / max(spread.std(), 1e-300)
    draws = np.random.default_rng(seed).integers(len(spread), size=(bootstrap, len(spread)))
    resampled, _ = minimise(model, predicted + spread[draws], np.repeat(best[None], bootstrap, axis=0), **solve)
    return LossFit(best, resampled, residuals, scale)


def fit_sizes(n: Sequence[float], loss: Sequence[float], *, delta: float) -> np.ndarray:
    """L(N) = E + A / N^alpha through the cells of one token budget, as parameters `[5]` of the whole law without its data term.

    It assumes no law in D: where models learn to copy between two budgets, their loss follows none.

    Args:
        n, loss: `[cells]`.
        delta: of the Huber loss on log L.

    Raises:
        ValueError: fewer than four sizes, for three parameters.
    """
    log_n, log_loss = (np.log(np.asarray(values, dtype=float)) for values in (n, loss))
    if len(np.unique(log_n)) < LEAST_SIZES:
        raise ValueError(f"{len(np.unique(log_n))} sizes are too few for three parameters: four at least")

    no_tokens = np.zeros_like(log_n)

    def model(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _log_loss(parameters, log_n, no_tokens)

    lower, upper = LOWER.copy(), UPPER.copy()
    lower[1] = upper[1] = NO_TERM
    solutions, losses = minimise(
        model, log_loss, _starts(log_n, no_tokens, log_loss), delta=delta, lower=lower, upper=upper
    )
    return solutions[np.argmin(losses)]


def interval(fit: LossFit, values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The expanded percentile interval of `values` over the resamples (Hesterberg 2015, §5.2).

    With few degrees of freedom plain percentiles are too narrow: the interval is expanded to the tails of Student's t.
    """
    tail = stats.norm.cdf(stats.t.ppf((1 - level) / 2, fit.degrees_of_freedom))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def prediction_interval(fit: LossFit, n: float, d: float, *, seed: int) -> tuple[float, float]:
    """The prediction interval of a new cell's loss, its own noise included."""
    noise = np.random.default_rng(seed).normal(scale=fit.scale, size=len(fit.resampled))
    return interval(fit, predict(fit.resampled, n, d) * np.exp(noise))


def _starts(log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
    """The `STARTS` `[starts, 5]`, given for N and D near 1, shifted to this data: log A by alpha log N, log B by beta log D."""
    starts = np.array(STARTS)
    starts[:, 0] = np.log(0.5) + starts[:, 3] * log_n.mean() + starts[:, 0] - 4
    starts[:, 1] = np.log(0.5) + starts[:, 4] * log_d.mean() + starts[:, 1] - 4
    starts[:, 2] += log_loss.min() - 0.5
    return starts


def _log_loss(parameters: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L `[B, m]` and its derivatives `[B, m, 5]`, as a log-sum-exp of the three terms."""
    a, b, e, alpha, beta = (parameters[:, i, None] for i in range(NUM_PARAMETERS))
    terms = np.stack([a - alpha * log_n, b - beta * log_d, np.broadcast_to(e, (len(a), len(log_n)))])
    top = terms.max(axis=0)
    weights = np.exp(terms - top)
    total = weights.sum(axis=0)
    share = weights / total
    jacobian = np.stack([*share, -log_n * share[0], -log_d * share[1]], axis=2)
    return top + np.log(total), jacobian


def _leverage(jacobian: np.ndarray) -> np.ndarray:
    """Diagonal of the hat matrix, `[n]`."""
    q, _ = np.linalg.qr(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300))
    return (q**2).sum(axis=1)
