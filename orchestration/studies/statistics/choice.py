"""Choice among laws by cross-validation: whole sizes and whole budgets are left out and predicted."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from .cells import Cells
from .law_fit import check_design, estimate
from .laws import Law


class Score(NamedTuple):
    """A law and its error on cells that it did not see.

    Attributes:
        error: root mean square of log(predicted / measured); infinite where the law cannot be fitted.
        folds: how often something was left out.
        note: why there is no error.
    """

    law: Law
    error: float
    folds: int
    note: str = ""


def cross_validate(
    laws: Sequence[Law], cells: Cells, groups: Sequence[Sequence[Hashable]], *, delta: float
) -> list[Score]:
    """Rank laws by their cross-validation error, lowest first.

    Leaving out single cells asks a law to interpolate, which all of them can; a size or a budget asks for what laws are for.

    Args:
        groups: ways to divide the cells, each `[cells]` of labels: their sizes, their budgets.
    """
    scores = []
    for law in laws:
        errors: list[float] = []
        folds, note = 0, ""
        for labels in groups:
            for label in dict.fromkeys(labels):
                seen = np.array([other != label for other in labels])
                rest, left = cells.keep(seen), cells.keep(~seen)
                try:
                    check_design(law, rest)
                except ValueError as error:
                    note = str(error)
                    continue
                best, _ = estimate(law, rest, delta=delta)
                errors += list(np.log(law.predict(best, left.columns)) - left.log_loss)
                folds += 1
        error = float(np.sqrt(np.mean(np.square(errors)))) if errors else float("inf")
        scores.append(Score(law, error, folds, "" if errors else note))
    return sorted(scores, key=lambda score: score.error)
