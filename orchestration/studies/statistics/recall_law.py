"""The recall law: recall as a saturating power law of state size, number of pairs and length.

    recalled = (accuracy - chance) / (1 - chance) = 1 / (1 + difficulty)
    difficulty = c * pairs^p * length^q / state_bytes^s

It is a power law in the difficulty where recall is poor and saturates at 1 where the state is ample. A quantity that does
not vary over the cells has no exponent: it is part of c.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..results import RecallRow
from .solver import minimise

DELTA = 2.0  # of the Huber loss, in standard errors of an accuracy
LEAST_MODELS = 4
FEW_MODELS = 8  # with 5 the intervals are too wide, with 12 as wide as they say (benchmarks/studies/coverage.py)
SCATTER = 0.02  # least standard deviation of an accuracy: models of one size differ by more than queries tell


@dataclass(frozen=True)
class RecallFit:
    """A fitted recall law: log c and the identifiable exponents.

    Attributes:
        names: "log_c", and those of "state_bytes", "pairs", "length" that vary.
        parameters: `[P]`; signs as in the module's formula: positive if more state helps, and if more pairs and length
            hurt.
        without: `[models, P]`, the parameters without each model.
        predicted: `[rows]`, accuracies.
    """

    names: tuple[str, ...]
    parameters: np.ndarray
    without: np.ndarray
    predicted: np.ndarray

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The interval by the jackknife over models (MacKinnon, Nielsen and Webb 2023, CV3) and Student's t.

        Models at chance or at 100% tell nothing of an exponent, so its degrees of freedom are fewer than the models: half of
        Satterthwaite's estimate (1946) from the spread of the models' contributions, and at most models less what they alone tell
        (log c and s). Half, for with all of it the intervals of s cover 90% (benchmarks/studies/coverage.py).
        """
        i, models = self.names.index(name), len(self.without)
        squares = (self.without[:, i] - self.parameters[i]) ** 2
        error = np.sqrt((models - 1) / models * squares.sum())
        spread = 1.5 * squares.sum() ** 2 / max((squares**2).sum(), 1e-300)
        most = models - (2 if "state_bytes" in self.names else 1)
        margin = float(stats.t.ppf((1 + level) / 2, np.clip(spread, 2, most))) * error
        return float(self.parameters[i] - margin), float(self.parameters[i] + margin)

    def warning(self) -> str:
        """A warning of what the models do not determine; empty if there is nothing to warn of."""
        few = len(self.without) < FEW_MODELS
        return f"{len(self.without)} models are few: intervals are wider than 95% asks" if few else ""


def fit_recall(rows: Sequence[RecallRow], models: Sequence[Hashable]) -> RecallFit:
    """Fit the law to rows; rows of one model share its scatter, so models are left out one by one and not rows.

    Args:
        models: of each row, the model that it was measured on.

    Raises:
        ValueError: too few rows or models, or none above chance, or all of them perfect.
    """
    accuracy = np.array([row.correct / row.queries for row in rows])
    chance = np.array([row.chance for row in rows])
    queries = np.array([row.queries for row in rows])
    error = np.sqrt(np.maximum(accuracy * (1 - accuracy), chance * (1 - chance) / 4) / queries)
    above = accuracy > chance + 3 * np.sqrt(chance * (1 - chance) / queries)
    enough = max(3, len(rows) // 10)  # among many cells some are above chance by luck
    if above.sum() < enough:
        raise ValueError(f"{above.sum()} of {len(rows)} cells are above chance: {enough} at least")
    if (accuracy < 1).sum() < 3:
        raise ValueError("recall is perfect everywhere: nothing bends")
    names_of_models = list(dict.fromkeys(models))
    if len(names_of_models) < LEAST_MODELS:
        raise ValueError(f"{len(names_of_models)} models do not tell how models scatter: {LEAST_MODELS} at least")
    columns, names = [np.ones(len(rows))], ["log_c"]
    for name, sign in (("state_bytes", -1.0), ("pairs", 1.0), ("length", 1.0)):
        values = np.log([getattr(row, name) for row in rows])
        if np.ptp(values) > 1e-9:
            columns.append(sign * (values - values.mean()))
            names.append(name)
    design = np.stack(columns, axis=1)
    if len(rows) <= len(names) + 1:
        raise ValueError(f"{len(rows)} cells are too few for {len(names)} parameters")
    # Sampling of queries gives accuracies an error of a percent or less, and models differ by more, so every row gets the same
    # standard deviation.
    error = np.maximum(error, SCATTER)

    def model(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        recalled = 1 / (1 + np.exp(np.clip(parameters @ design.T, -50, 50)))
        span = 1 - chance
        slope = -span * recalled * (1 - recalled)
        return (chance + span * recalled) / error, slope[..., None] * design / error[:, None]

    def fit(weights: np.ndarray) -> np.ndarray:
        """The best of several starts for each row of weights, `[B, P]`."""
        best, lowest = np.zeros((len(weights), len(names))), np.full(len(weights), np.inf)
        for level in np.linspace(-4, 4, 5):
            start = np.zeros((len(weights), len(names)))
            start[:, 0] = level
            solutions, losses = minimise(
                model, accuracy / error, start, weights=weights, delta=DELTA, lower=-30.0, upper=30.0
            )
            best[losses < lowest], lowest = solutions[losses < lowest], np.minimum(losses, lowest)
        return best

    member = np.array([[model == other for model in models] for other in names_of_models])
    fitted = fit(np.concatenate([np.ones((1, len(rows))), (~member).astype(float)]))
    return RecallFit(tuple(names), fitted[0], fitted[1:], model(fitted[:1])[0][0] * error)
