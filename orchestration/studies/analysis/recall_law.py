"""The recall law: recall as a saturating power law of state size, number of pairs and length.

    recalled = (accuracy - chance) / (1 - chance) = 1 / (1 + difficulty)
    difficulty = c * pairs^p * length^q / state_bytes^s

It is a power law in the difficulty where recall is poor and saturates at 1 where the state is ample. A quantity that does
not vary over the cells has no exponent: it is part of c.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..results import RecallRow
from .solver import minimise

DELTA = 2.0  # of the Huber loss, in standard errors of an accuracy


@dataclass(frozen=True)
class RecallFit:
    """A fitted recall law: log c and the identifiable exponents, with their resamples.

    Attributes:
        names: "log_c", and those of "state_bytes", "pairs", "length" that vary.
        parameters: `[P]`; signs as in the module's formula: positive if more state helps, and if more pairs and length
            hurt.
        resampled: `[resamples, P]`.
        predicted: `[cells]`, accuracies.
    """

    names: tuple[str, ...]
    parameters: np.ndarray
    resampled: np.ndarray
    predicted: np.ndarray


def fit_recall(rows: Sequence[RecallRow], *, bootstrap: int, seed: int) -> RecallFit:
    """Fit the law to rows; the bootstrap draws rows with replacement.

    Raises:
        ValueError: too few rows, or none above chance, or all of them perfect.
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
    columns, names = [np.ones(len(rows))], ["log_c"]
    for name, sign in (("state_bytes", -1.0), ("pairs", 1.0), ("length", 1.0)):
        values = np.log([getattr(row, name) for row in rows])
        if np.ptp(values) > 1e-9:
            columns.append(sign * (values - values.mean()))
            names.append(name)
    design = np.stack(columns, axis=1)
    if len(rows) <= len(names) + 1:
        raise ValueError(f"{len(rows)} cells are too few for {len(names)} parameters")

    def model(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        recalled = 1 / (1 + np.exp(np.clip(parameters @ design.T, -50, 50)))
        span = 1 - chance
        slope = -span * recalled * (1 - recalled)
        return (chance + span * recalled) / error, slope[..., None] * design / error[:, None]

    starts = np.zeros((5, len(names)))
    starts[:, 0] = np.linspace(-4, 4, 5)
    solve = dict(delta=DELTA, lower=-30.0, upper=30.0)
    solutions, losses = minimise(model, accuracy / error, starts, **solve)
    best = solutions[np.argmin(losses)]
    predicted = model(best[None])[0][0] * error
    # Resampling as weights: a row drawn twice has weight two.
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=bootstrap)
    resampled, _ = minimise(
        model, accuracy / error, np.repeat(best[None], bootstrap, axis=0), weights=draws.astype(float), **solve
    )
    return RecallFit(tuple(names), best, resampled, predicted)
