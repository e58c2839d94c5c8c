"""Robust least squares for many problems at once, which makes many starts and bootstrap intervals cheap.

Levenberg-Marquardt on the Huber loss, by reweighting (Holland and Welsch 1977): a residual beyond `delta` has weight
`delta / |r|`. scipy's `least_squares(loss="huber")` reaches the same minima one problem at a time (a test compares them).
"""

from collections.abc import Callable

import numpy as np

# parameters [B, P] -> predictions [B, n] and their derivatives [B, n, P]
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """Huber's loss, elementwise: r^2 / 2 up to `delta`, linear beyond (Huber 1964)."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def minimise(
    model: Model,
    target: np.ndarray,
    start: np.ndarray,
    *,
    delta: float,
    weights: np.ndarray | float = 1.0,
    lower: np.ndarray | float = -np.inf,
    upper: np.ndarray | float = np.inf,
    iterations: int = 500,
    tolerance: float = 1e-10,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise `sum(weights * huber(model(p) - target))` over the parameters of `B` independent problems.

    Args:
        target: `[B, n]` or `[n]`.
        start: `[B, P]`.
        delta: where the loss turns linear, in units of the target.
        weights: `[B, n]` or `[n]`.
        lower: lower bounds `[P]`; a step is cut at them.
        upper: upper bounds `[P]`.
        tolerance: a problem ends when a step lowers its loss by less than this share.

    Returns:
        parameters `[B, P]` and losses `[B]`.
    """
    parameters = np.clip(np.array(start, dtype=float), lower, upper)
    problems, size = parameters.shape
    predicted, jacobian = model(parameters)
    target = np.broadcast_to(target, predicted.shape)
    weights = np.broadcast_to(weights, predicted.shape)
    losses = (weights * huber(predicted - target, delta)).sum(axis=1)
    damping = np.full(problems, 1e-3)
    active = np.arange(problems)  # problems that have not converged; most do early, some valleys are long
    for _ in range(iterations):
        residuals = predicted - target[active]
        pull = weights[active] / np.maximum(1.0, np.abs(residuals) / delta)
        gradient = np.einsum("bnp,bn->bp", jacobian, pull * residuals)
        normal = np.matmul((jacobian * pull[:, :, None]).transpose(0, 2, 1), jacobian)
        diagonal = np.einsum("bpp->bp", normal)
        scale = damping[active, None] * (diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300)
        # A parameter at a bound with a gradient beyond it stays fixed and does not affect the other parameters' step.
        now = parameters[active]
        free = ~(((now <= lower) & (gradient > 0)) | ((now >= upper) & (gradient < 0)))
        free_pairs = free[:, :, None] & free[:, None, :]
        system = np.where(free_pairs, normal, 0.0) + np.eye(size) * np.where(free, scale, 1.0)[:, :, None]
        step = np.linalg.solve(system, np.where(free, -gradient, 0.0)[:, :, None])[:, :, 0]
        trial = np.clip(now + step, lower, upper)
        trial_predicted, trial_jacobian = model(trial)
        trial_losses = (weights[active] * huber(trial_predicted - target[active], delta)).sum(axis=1)
        before = losses[active]
        better = trial_losses < before
        converged = before - trial_losses <= tolerance * before
        parameters[active[better]] = trial[better]
        losses[active[better]] = trial_losses[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-14), damping[active] * 4)
        ended = (better & converged) | (~better & (damping[active] > 1e12))
        predicted = np.where(better[:, None], trial_predicted, predicted)[~ended]
        jacobian = np.where(better[:, None, None], trial_jacobian, jacobian)[~ended]
        active = active[~ended]
        if not len(active):
            break
    return parameters, losses
