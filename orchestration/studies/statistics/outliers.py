"""Detection of outlying cells: each is compared with the law fitted to the others (externally studentized residuals).

Cook and Weisberg 1982, section 2.2.2; Bonferroni's correction for looking at every cell.
"""

import numpy as np
from scipy import stats

from .cells import Cells
from .law_fit import estimate
from .laws import Law
from .solver import minimise

LEVEL = 0.01  # a study without outliers has one flagged once in a hundred times
LEAST_FREEDOM = 3  # of the law without the cell


def find_outliers(law: Law, cells: Cells, *, delta: float) -> np.ndarray:
    """Mark outlying cells, bool `[cells]`, found one after the other: at most a tenth of the cells, but at least one may be
    found.

    Few cells or many outliers hide each other; then none is flagged.
    """
    kept = np.ones(len(cells), dtype=bool)
    for _ in range(max(1, len(cells) // 10)):
        some = cells.keep(kept)
        freedom = len(some) - 1 - len(law.parameters)
        if freedom < LEAST_FREEDOM:
            break
        t = _deleted_residuals(law, some, delta)
        worst = int(np.argmax(np.abs(t)))
        if 2 * stats.t.sf(abs(t[worst]), freedom) * len(some) > LEVEL:
            break
        kept[np.flatnonzero(kept)[worst]] = False
    return ~kept


def _deleted_residuals(law: Law, cells: Cells, delta: float) -> np.ndarray:
    """Residual of each cell from the law through the others, in standard errors of that prediction."""
    _, minima = estimate(law, cells, delta=delta)
    count, starts = len(cells), np.concatenate([minima[:3], minima[:1] * 1.1])
    left_out = np.repeat(np.eye(count), len(starts), axis=0)  # a problem a cell and start, the cell with weight 0
    solutions, losses = minimise(
        lambda numbers: law.log_loss(numbers, cells.columns),
        cells.log_loss,
        np.tile(starts, (count, 1)),
        delta=delta,
        weights=1 - left_out,
        lower=law.lower,
        upper=law.upper,
        iterations=100,
        tolerance=1e-6,
    )
    best = losses.reshape(count, -1).argmin(axis=1)
    fits = solutions.reshape(count, len(starts), -1)[np.arange(count), best]
    predicted, jacobian = law.log_loss(fits, cells.columns)
    residuals = cells.log_loss - predicted
    t = np.zeros(count)
    for i in range(count):
        others = np.arange(count) != i
        variance = (residuals[i, others] ** 2).sum() / (count - 1 - len(law.parameters))
        # Variance of the prediction by the linearised law; the pseudo-inverse where a parameter is at its bound.
        covariance = np.linalg.pinv(jacobian[i, others].T @ jacobian[i, others], rcond=1e-12)
        ahead = 1 + float(jacobian[i, i] @ covariance @ jacobian[i, i])
        t[i] = residuals[i, i] / np.sqrt(max(variance * ahead, 1e-300))
    return t
