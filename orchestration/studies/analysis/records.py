"""The record of a study's fits, `fit.json`."""

from typing import Literal

from pydantic import Field

from ....models.common.config import Record

Side = Literal["value", "low", "high"]


class Interval(Record):
    """An estimate and its 95% interval.

    Attributes:
        at_bound: those of the three that are a bound of the fit, not an estimate.
    """

    value: float
    low: float
    high: float
    at_bound: tuple[Side, ...] = ()

    def __str__(self) -> str:
        """`0.348 (0.331 to 0.362)`; what is a bound of the fit has a star."""
        keys: tuple[Side, ...] = ("value", "low", "high")
        value, low, high = (f"{getattr(self, key):.3g}" + ("*" if key in self.at_bound else "") for key in keys)
        return f"{value} ({low} to {high})"


class Residual(Record):
    """log(measured loss / fitted loss) of a cell in the fit; of several seeds the mean, under the first one's name."""

    cell: str
    fitted: float
    residual: float


class LossLaw(Record):
    """L(N, D) of one family; `note` the reason if there is no law.

    Attributes:
        cells: runs that entered the fit; `distinct`: cells, seeds averaged.
        scale: noise of a run around the law in log L; `misfit`: the part of it that seeds do not explain.
        lack_of_fit: p-value of the F-test of the misfit against the seeds; None with one seed a cell.
        size_exponent: a of N_opt ~ C^a, beta / (alpha + beta).
        outliers: cells that are far from the law through the others and were left out of it.
        warnings: what these cells cannot tell.
    """

    family: str
    cells: int
    distinct: int = 0
    E: Interval | None = None
    A: Interval | None = None
    B: Interval | None = None
    alpha: Interval | None = None
    beta: Interval | None = None
    size_exponent: Interval | None = None
    scale: float | None = None
    misfit: float | None = None
    lack_of_fit: float | None = None
    residuals: tuple[Residual, ...] = ()
    outliers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    note: str = ""


class Prediction(Record):
    """Predictions of a held-out cell's loss: by the law fitted without its size, by a law of its budget's cells alone, and
    naively, by the loss of the next smaller size.

    Attributes:
        error, one_budget_error, naive_error: relative to the measured loss.
        one_budget: predicted through the fitted cells of its family and budget: by E + A / N^alpha, or by the parabola if the
            budget is in FLOPs; None with fewer than four sizes.
        naive: loss of the same family, budget and seeds at the largest fitted size; None if that cell is missing.
    """

    cell: str
    family: str
    measured: float
    predicted: Interval
    error: float
    one_budget: float | None
    one_budget_error: float | None
    naive: float | None
    naive_error: float | None


class IsoFlop(Record):
    """The best size of a family at one training cost; `note` the reason if there is none, or no interval of it.

    Attributes:
        coefficients: of log L in log N - log `centre`, constant first.
    """

    family: str
    budget: str
    flops: float
    sizes: int
    centre: float
    coefficients: tuple[float, float, float]
    best_parameters: float | None
    interval: tuple[float, float] | None
    best_loss: float | None
    note: str = ""


class Optimum(Record):
    """The best size and tokens of a family at a training cost, by its law and each size's own FLOPs; among the study's sizes."""

    family: str
    flops: float
    parameters: Interval
    tokens: Interval


class LawChoice(Record):
    """The error of a law on whole sizes and budgets that it did not see, root mean square in log L; None if it has no fit."""

    family: str
    law: str
    error: float | None
    note: str = ""


class JointLaw(Record):
    """One law of all families with exponents in common; `note` the reason if there is none."""

    cells: int
    alpha: Interval | None = None
    beta: Interval | None = None
    scale: float | None = None
    note: str = ""


class RepeatedData(Record):
    """The law of a family whose cells repeat their data (Muennighoff et al. 2023, equation 5), with the fitted scale `R` of
    repetitions."""

    family: str
    epochs: float
    R: Interval | None = None
    alpha: Interval | None = None
    beta: Interval | None = None
    note: str = ""


class RecallLaw(Record):
    """`recalled = 1 / (1 + c pairs^p length^q / state_bytes^s)` of one task at the largest budget; family "all" pools the arms.

    `exponents` are those of the quantities that vary: state_bytes (s), pairs (p), length (q).
    """

    family: str
    task: str
    cells: int
    models: int = 0
    exponents: dict[str, Interval] = Field(default={})
    rmse: float | None = None
    note: str = ""


class Comparison(Record):
    """Two families compared at the largest compute that both laws cover: ratio of their best losses there."""

    first: str
    second: str
    flops: float
    ratio: Interval


class StudyFit(Record):
    """All fits of a study, and the missing cells.

    Attributes:
        unusable: cells whose loss is no positive number: they diverged, and enter nothing.
    """

    version: int = 2
    study: str
    loss: str
    huber_delta: float
    bootstrap: int
    cells: int
    missing: tuple[str, ...]
    unusable: tuple[str, ...] = ()
    held_out_sizes: tuple[str, ...]
    laws: tuple[LossLaw, ...]
    predictions: tuple[Prediction, ...]
    comparisons: tuple[Comparison, ...]
    isoflops: tuple[IsoFlop, ...]
    optima: tuple[Optimum, ...] = ()
    choice: tuple[LawChoice, ...] = ()
    joint: JointLaw | None = None
    repeated: tuple[RepeatedData, ...] = ()
    recall: tuple[RecallLaw, ...]
