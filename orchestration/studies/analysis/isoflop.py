"""IsoFLOP parabolas (Hoffmann et al. 2022, approach 2): the size with the lowest loss at one training cost."""

import numpy as np


def fit_parabola(n: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Coefficients of log L as a parabola in log N, highest power first; `[3]`, or `[B, 3]` for losses `[B, n]`."""
    powers = np.vander(np.log(n), 3)
    return np.linalg.lstsq(powers, np.log(np.atleast_2d(loss)).T, rcond=None)[0].T.squeeze()


def minimum(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Size and loss at the minimum of parabolas `[..., 3]`; NaN where one opens downwards."""
    a, b, c = np.moveaxis(np.asarray(coefficients), -1, 0)
    a = np.where(a > 0, a, np.nan)
    return np.exp(-b / (2 * a)), np.exp(c - b**2 / (4 * a))


def resample_minimum(n: np.ndarray, loss: np.ndarray, scale: float, *, bootstrap: int, seed: int) -> np.ndarray:
    """Sizes at the minimum, `[bootstrap]`, of parabolas through the fitted losses with noise of `scale` in log L."""
    fitted = np.vander(np.log(n), 3) @ fit_parabola(n, loss)
    noise = np.random.default_rng(seed).normal(scale=scale, size=(bootstrap, len(n)))
    return minimum(fit_parabola(n, np.exp(fitted + noise)))[0]
