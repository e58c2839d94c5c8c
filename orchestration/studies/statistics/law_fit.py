"""Fits of laws with intervals: robust loss on log L, many starts, bootstrap of the cells' residuals.

Hoffmann et al. 2022 (approach 3) for the loss, Davison and Hinkley 1997 (section 6.3) for the bootstrap, Hesterberg 2015 (section
5.2) for the intervals, Draper and Smith 1998 (section 2.1) for the test of lack of fit.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from .cells import Cells
from .laws import Columns, Law
from .solver import minimise

RESAMPLE_STARTS = 4  # of every resample: the best fit, the other minima that were found, then starts of the grid
LARGEST_LEVERAGE = 0.95
STRAIGHT = 0.98  # squared correlation of log N and log D
ONE_LINE = "alpha and beta are not told apart: all cells lie on one line of log N and log D (one ratio of tokens to parameters)"
UNEQUAL_NOISE = "seeds of some cells differ more than those of others"
WIDE = 1.0  # of a 95% interval of an exponent: steeper and flatter laws fit alike


@dataclass(frozen=True)
class LawFit:
    """A fitted law and its bootstrap.

    Attributes:
        fitted: `[P]`, the law's fitted numbers (logarithms of its scales).
        resampled: `[resamples, P]`.
        residuals: `[cells]`, log of measured over fitted.
        scale: standard deviation of one run around the law, in log L: seeds and misfit.
        misfit: standard deviation of a cell around the law that seeds do not explain; `scale` if every cell has one seed.
        weights: `[cells]`, mean 1.
        lack_of_fit: p-value of the F-test of the misfit against the seeds; None without several seeds.
    """

    law: Law
    cells: Cells
    fitted: np.ndarray
    resampled: np.ndarray
    residuals: np.ndarray
    scale: float
    misfit: float
    weights: np.ndarray
    lack_of_fit: float | None

    @property
    def degrees_of_freedom(self) -> int:
        return len(self.residuals) - len(self.fitted)

    def value(self, name: str) -> float:
        """The estimate of a parameter."""
        return float(self.law.natural(self.fitted)[self.law.names.index(name)])

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The interval of a parameter."""
        low, high = self.interval_of(self.law.natural(self.resampled)[:, self.law.names.index(name)], level)
        return low, high

    def interval_of(self, values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
        """The expanded percentile interval of any function of the parameters, `[resamples]`.

        With few degrees of freedom plain percentiles are too narrow: they are moved out to the tails of Student's t.
        """
        tail = stats.norm.cdf(stats.t.ppf((1 - level) / 2, self.degrees_of_freedom))
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(low), float(high)

    def at_bound(self, name: str, value: float) -> bool:
        """Whether a value of a parameter is a bound of the fit and not an estimate."""
        parameter = self.law.parameters[self.law.names.index(name)]
        if parameter.log:
            return not parameter.low * 1.01 < value < parameter.high / 1.01
        margin = 1e-3 * (parameter.high - parameter.low)
        return not parameter.low + margin < value < parameter.high - margin

    def predict(self, columns: Columns) -> np.ndarray:
        """The predicted loss L of `m` cells, `[m]`."""
        return self.law.predict(self.fitted, columns)

    def prediction_interval(self, columns: Columns, *, seed: int, level: float = 0.95) -> tuple[float, float]:
        """The interval of the loss of a new run, its own noise included; `columns` of one cell."""
        noise = np.random.default_rng(seed).normal(scale=self.scale, size=len(self.resampled))
        return self.interval_of(self.law.predict(self.resampled, columns)[:, 0] * np.exp(noise), level)

    def warnings(self) -> list[str]:
        """Warnings of what the cells do not determine: exponents whose intervals reach a bound or are wider than `WIDE`, values
        at a bound."""
        found = []
        if {"n", "d"} <= set(self.law.columns) and on_one_line(self.cells.columns):
            found.append(ONE_LINE)
        for parameter in self.law.parameters:
            low, high = self.interval(parameter.name)
            if parameter.log:
                if self.at_bound(parameter.name, self.value(parameter.name)):
                    found.append(f"{parameter.name} lies at a bound of the fit: its term is not seen")
            elif self.at_bound(parameter.name, low) or self.at_bound(parameter.name, high) or high - low > WIDE:
                found.append(f"{parameter.name} is not identified: {low:.2g} to {high:.2g} fit alike")
        if self.lack_of_fit is not None and self.lack_of_fit < 0.01:
            found.append(
                f"the law does not fit: cells lie further from it than seeds differ (F-test, p = {self.lack_of_fit:.1g})"
            )
        if self.cells.equal_noise is not None and self.cells.equal_noise < 0.01:
            found.append(
                f"{UNEQUAL_NOISE} (Bartlett's test, p = {self.cells.equal_noise:.1g}): intervals take it as one"
            )
        return found


def on_one_line(columns: Columns) -> bool:
    """Whether log N and log D lie on one line: one ratio of tokens to parameters, or one training cost."""
    log_n, log_d = np.log(columns["n"]), np.log(columns["d"])
    return bool(np.ptp(log_n) > 0 and np.ptp(log_d) > 0 and np.corrcoef(log_n, log_d)[0, 1] ** 2 > STRAIGHT)


def check_design(law: Law, cells: Cells) -> None:
    """Refuse cells that are too few for the law.

    Raises:
        ValueError: no cell more than parameters, or a column with fewer than three different values.
    """
    needed = len(law.parameters) + 1
    if len(cells) < needed:
        raise ValueError(f"{len(cells)} cells are too few for {len(law.parameters)} parameters: {needed} at least")
    for name, word in (("n", "sizes"), ("d", "token budgets")):
        if name in law.columns and (count := len(np.unique(cells.columns[name]))) < 3:
            raise ValueError(f"{count} {word} do not tell a power law from a constant: three at least")


def estimate(
    law: Law, cells: Cells, *, delta: float, weights: np.ndarray | None = None, starts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best fit `[P]` and the distinct minima that were found, best first, `[minima, P]`."""
    first = law.starts(cells.columns, cells.log_loss) if starts is None else starts
    solutions, losses = minimise(
        lambda numbers: law.log_loss(numbers, cells.columns),
        cells.log_loss,
        first,
        delta=delta,
        weights=1.0 if weights is None else weights,
        lower=law.lower,
        upper=law.upper,
    )
    solutions = solutions[np.argsort(losses)]
    distinct: list[np.ndarray] = []
    for solution in solutions:
        if all(np.abs(solution - other).max() > 0.05 for other in distinct):
            distinct.append(solution)
    return solutions[0], np.array(distinct)


def fit_law(
    law: Law, cells: Cells, *, delta: float, bootstrap: int, seed: int, weights: np.ndarray | None = None
) -> LawFit:
    """Fit a law to cells and resample it.

    Residuals of whole cells are resampled and the design is kept: with a dozen cells, drawing cells would leave sizes out. A
    robust fit passes through some of its cells, so residuals are scaled up by leverage and degrees of freedom. Every resample is
    fitted from several starts, or another basin would never be seen.

    Args:
        delta: of the Huber loss on log L.
        weights: `[cells]`; by default the inverse variance of a cell's mean, its misfit and its seeds together.

    Raises:
        ValueError: too few cells (`check_design`).
    """
    check_design(law, cells)
    freedom = len(cells) - len(law.parameters)
    given, weights = weights, np.ones(len(cells)) if weights is None else np.asarray(weights) / np.mean(weights)
    best, minima = estimate(law, cells, delta=delta, weights=weights)
    if given is None and len(np.unique(cells.seeds)) > 1:
        residuals = cells.log_loss - law.log_loss(best[None], cells.columns)[0][0]
        weights = _seed_weights(cells, _misfit_variance(cells, residuals, freedom))
        best, minima = estimate(law, cells, delta=delta, weights=weights, starts=minima)
    predicted, jacobian = (values[0] for values in law.log_loss(best[None], cells.columns))
    residuals = cells.log_loss - predicted
    misfit_variance = _misfit_variance(cells, residuals, freedom)

    root = np.sqrt(weights)
    leverage = np.clip(_leverage(jacobian * root[:, None]), 0.0, LARGEST_LEVERAGE)
    spread = residuals * root / np.sqrt(1 - leverage)
    spread = spread - spread.mean()
    spread *= np.sqrt((weights * residuals**2).sum() / freedom) / max(spread.std(), 1e-300)
    random = np.random.default_rng(seed)
    draws = random.integers(len(spread), size=(bootstrap, len(spread)))
    targets = predicted + spread[draws] / root
    grid = law.starts(cells.columns, cells.log_loss)
    others = [*minima[1:], *grid[random.permutation(len(grid))]][: RESAMPLE_STARTS - 1]
    return LawFit(
        law=law,
        cells=cells,
        fitted=best,
        resampled=_refit(law, cells, targets, [best, *others], delta, weights),
        residuals=residuals,
        scale=float(np.sqrt(misfit_variance + cells.seed_variance)),
        misfit=float(np.sqrt(misfit_variance)),
        weights=weights,
        lack_of_fit=_lack_of_fit(cells, residuals, freedom),
    )


def _refit(
    law: Law, cells: Cells, targets: np.ndarray, starts: list[np.ndarray], delta: float, weights: np.ndarray
) -> np.ndarray:
    """The best fit of every resample over the starts, `[resamples, P]`."""
    solutions, losses = minimise(
        lambda numbers: law.log_loss(numbers, cells.columns),
        np.tile(targets, (len(starts), 1)),
        np.repeat(np.array(starts), len(targets), axis=0),
        delta=delta,
        weights=weights,
        lower=law.lower,
        upper=law.upper,
        iterations=100,
        tolerance=1e-6,
    )
    best = losses.reshape(len(starts), len(targets)).argmin(axis=0)
    return solutions.reshape(len(starts), len(targets), -1)[best, np.arange(len(targets))]


def _misfit_variance(cells: Cells, residuals: np.ndarray, freedom: int) -> float:
    """Variance of a cell around the law beyond that of the mean of its seeds (moment estimate, not below 0)."""
    around = float((residuals**2).sum()) / freedom
    return max(0.0, around - cells.seed_variance * float(np.mean(1 / cells.seeds)))


def _seed_weights(cells: Cells, misfit_variance: float) -> np.ndarray:
    variance = misfit_variance + cells.seed_variance / cells.seeds
    if not (variance > 0).all():
        return np.ones(len(cells))
    return (1 / variance) / np.mean(1 / variance)


def _lack_of_fit(cells: Cells, residuals: np.ndarray, freedom: int) -> float | None:
    """p-value of the F-test: mean square of the cells around the law against that of the seeds around their cells."""
    if not cells.seed_freedom or not cells.seed_variance:
        return None
    around = float((cells.seeds * residuals**2).sum()) / freedom
    return float(stats.f.sf(around / cells.seed_variance, freedom, cells.seed_freedom))


def _leverage(jacobian: np.ndarray) -> np.ndarray:
    """Diagonal of the hat matrix, `[cells]`."""
    q, _ = np.linalg.qr(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300))
    return (q**2).sum(axis=1)
