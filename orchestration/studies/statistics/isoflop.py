"""IsoFLOP parabolas (Hoffmann et al. 2022, approach 2): the size with the lowest loss at one training cost, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEAST_SIZES = 4  # a parabola through three points has no residuals, so the noise cannot be estimated


@dataclass(frozen=True)
class Parabola:
    """A parabola log L = c0 + c1 x + c2 x^2 in x = log N - `centre`, fitted by least squares.

    Attributes:
        coefficients: c0, c1, c2.
        covariance: `[3, 3]`, of the coefficients for noise of variance 1.
        squares: sum of squared residuals; `freedom` cells more than coefficients.
    """

    centre: float
    coefficients: np.ndarray
    covariance: np.ndarray
    squares: float
    freedom: int

    @property
    def opens_upwards(self) -> bool:
        return bool(self.coefficients[2] > 0)

    @property
    def best_size(self) -> float:
        """The size N at the minimum; NaN if the parabola opens downwards."""
        _, c1, c2 = self.coefficients
        return float(np.exp(self.centre - c1 / (2 * c2))) if self.opens_upwards else float("nan")

    def loss(self, n: np.ndarray | float) -> np.ndarray:
        """The loss L at sizes `n`."""
        x = np.log(n) - self.centre
        return np.exp(np.polynomial.polynomial.polyval(x, self.coefficients))


def fit_parabola(n: ArrayLike, loss: ArrayLike) -> Parabola:
    """The parabola through cells of one training cost; seeds of one size count as its mean.

    Raises:
        ValueError: fewer than three sizes.
    """
    sizes = np.unique(np.asarray(n, dtype=float))
    if len(sizes) < 3:
        raise ValueError(f"{len(sizes)} sizes are too few for a parabola: three at least")
    log_loss = np.array([np.log(np.asarray(loss, dtype=float)[np.asarray(n) == size]).mean() for size in sizes])
    x = np.log(sizes) - np.log(sizes).mean()
    powers = np.vander(x, 3, increasing=True)
    coefficients = np.linalg.lstsq(powers, log_loss, rcond=None)[0]
    squares = float(((log_loss - powers @ coefficients) ** 2).sum())
    return Parabola(
        float(np.log(sizes).mean()), coefficients, np.linalg.inv(powers.T @ powers), squares, len(sizes) - 3
    )


def best_size_interval(
    parabola: Parabola, others: Sequence[Parabola] = (), *, level: float = 0.95
) -> tuple[float, float] | None:
    """The interval of the best size by Fieller's theorem (1954), which is exact for normal noise; None if it is unbounded.

    -c1 / (2 c2) is a ratio of two estimates. Where c2 is not different from 0 no finite interval holds it with this certainty.

    Args:
        others: parabolas of the same family at other costs, whose residuals also tell the noise: with four sizes a parabola has
            one degree of freedom of its own, and Student's t is 12.7.
    """
    freedom = parabola.freedom + sum(other.freedom for other in others)
    if not parabola.opens_upwards or freedom < 1:
        return None
    variance = (parabola.squares + sum(other.squares for other in others)) / freedom
    square = float(stats.t.ppf((1 + level) / 2, freedom)) ** 2 * variance
    _, c1, c2 = parabola.coefficients
    v = parabola.covariance
    # The x where |c1 + 2 c2 x| is within t standard errors of 0.
    a, b, c = 4 * (c2**2 - square * v[2, 2]), 4 * (c1 * c2 - square * v[1, 2]), c1**2 - square * v[1, 1]
    root = b**2 - 4 * a * c
    if a <= 0 or root < 0:
        return None
    low, high = ((-b + sign * np.sqrt(root)) / (2 * a) for sign in (-1, 1))
    return float(np.exp(parabola.centre + low)), float(np.exp(parabola.centre + high))
