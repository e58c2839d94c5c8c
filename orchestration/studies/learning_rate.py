"""The learning-rate rule across sizes: configured, or fitted to a small sweep."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from ...models.common.config import Record
from ...models.common.errors import UserError
from .config import LearningRateConfig


class FamilyRule(Record):
    """The learning rate of a family, `value * (parameters / at_parameters) ** exponent`.

    Attributes:
        best: the best learning rates of the sweep, by size; empty for a configured rule.
        at_edge: sizes whose best rate is the lowest or highest of the sweep: the optimum may lie beyond.
    """

    value: float
    at_parameters: float
    exponent: float
    best: dict[str, float] = Field(default={})
    at_edge: tuple[str, ...] = ()


class LearningRateRule(Record):
    """The learning-rate rules of all families."""

    families: dict[str, FamilyRule]

    def at(self, family: str, parameters: int) -> float:
        """The learning rate of a model of `parameters` non-embedding parameters, to four digits."""
        rule = self.families[family]
        return float(f"{rule.value * (parameters / rule.at_parameters) ** rule.exponent:.4g}")


def given_rule(config: LearningRateConfig, families: Sequence[str]) -> LearningRateRule:
    """The configured rule, which a sweep multiplies by its factors."""
    rule = FamilyRule(value=config.value, at_parameters=config.at_parameters, exponent=config.exponent)
    return LearningRateRule(families=dict.fromkeys(families, rule))


def fitted_rule(
    config: LearningRateConfig, sweep: Mapping[str, Mapping[str, tuple[int, Mapping[float, float]]]]
) -> LearningRateRule:
    """Fit a power law to the best learning rates of a sweep.

    The best of a size is the minimum of a parabola of the loss in the logarithm of the rate through the three points
    around the lowest one; at an edge it is the lowest point itself.

    Args:
        sweep: family -> size -> (parameters, learning rate -> loss); diverged cells are left out.

    Raises:
        UserError: a family and size has fewer than two cells that did not diverge.
    """
    families = {}
    for family, sizes in sweep.items():
        best, edges = {}, []
        for size, (_, losses) in sizes.items():
            if len(losses) < 2:
                raise UserError(
                    f"the sweep of {family} at {size} has {len(losses)} finished cells: lower learning_rate.value, or "
                    "see why its cells failed"
                )
            best[size], at_edge = _best_rate(losses)
            if at_edge:
                edges.append(size)
        x = np.log([parameters for parameters, _ in sizes.values()])
        exponent, intercept = np.polyfit(x - math.log(config.at_parameters), np.log(list(best.values())), 1)
        families[family] = FamilyRule(
            value=float(np.exp(intercept)),
            at_parameters=config.at_parameters,
            exponent=float(exponent),
            best=best,
            at_edge=tuple(edges),
        )
    return LearningRateRule(families=families)


def _best_rate(losses: Mapping[float, float]) -> tuple[float, bool]:
    rates = sorted(losses)
    lowest = min(range(len(rates)), key=lambda i: losses[rates[i]])
    if lowest in (0, len(rates) - 1):
        return rates[lowest], True
    around = rates[lowest - 1 : lowest + 2]
    a, b, _ = np.polyfit(np.log(around), [losses[rate] for rate in around], 2)
    return (float(np.exp(-b / (2 * a))), False) if a > 0 else (rates[lowest], False)
