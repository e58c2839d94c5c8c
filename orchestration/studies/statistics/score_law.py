"""Benchmarks from loss: accuracy as a logistic curve of the loss, from chance to 1 (Grattafiori et al. 2024, section 3.2.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import curve_fit


@dataclass(frozen=True)
class ScoreFit:
    """A fitted curve score = chance + (1 - chance) / (1 + exp(slope * (loss - middle))).

    Attributes:
        middle: the loss at which half of the way from chance to 1 is gone; `slope`: how fast, per unit of loss.
        errors: standard errors of middle and slope.
        noise: standard deviation of a score around the curve.
    """

    chance: float
    middle: float
    slope: float
    errors: tuple[float, float]
    noise: float
    freedom: int

    def predict(self, loss: np.ndarray | float) -> np.ndarray:
        """Scores at losses."""
        return _curve(np.asarray(loss, dtype=float), self.middle, self.slope, self.chance)

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The interval of `middle` or `slope`, by Student's t."""
        value, error = (self.middle, self.errors[0]) if name == "middle" else (self.slope, self.errors[1])
        margin = float(stats.t.ppf((1 + level) / 2, self.freedom)) * error
        return value - margin, value + margin


def fit_scores(loss: Sequence[float], score: Sequence[float], *, chance: float = 0.0) -> ScoreFit:
    """Fit the curve to models by least squares.

    Raises:
        ValueError: fewer than four models, or scores that do not leave chance.
    """
    x, y = np.asarray(loss, dtype=float), np.asarray(score, dtype=float)
    if len(x) < 4:
        raise ValueError(f"{len(x)} models are too few for a curve of two numbers: four at least")
    if np.ptp(y) < 1e-9 or np.ptp(x) < 1e-9:
        raise ValueError("scores or losses are all the same: nothing bends")
    start = (float(np.median(x)), 4.0 / float(np.ptp(x)))
    try:
        (middle, slope), covariance = curve_fit(lambda v, m, k: _curve(v, m, k, chance), x, y, p0=start, maxfev=5000)
    except RuntimeError as error:
        raise ValueError("the curve finds no place: scores do not follow the loss") from error
    freedom = len(x) - 2
    noise = float(np.sqrt(((y - _curve(x, middle, slope, chance)) ** 2).sum() / freedom))
    return ScoreFit(chance, float(middle), float(slope), tuple(np.sqrt(np.diag(covariance))), noise, freedom)


def _curve(loss: np.ndarray, middle: float, slope: float, chance: float) -> np.ndarray:
    return chance + (1 - chance) / (1 + np.exp(np.clip(slope * (loss - middle), -50, 50)))
