"""The fits of a study as one typed record, `fit.json`: a pure function of the plan and the finished cells."""

import hashlib
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from ....models.common.config import Record
from ..config import StudyConfig
from ..plan import Plan, budget_names
from ..results import CellResult
from .isoflop import fit_parabola, minimum, resample_minimum
from .loss_law import LEAST_SIZES, LossFit, fit_loss, fit_sizes, interval, predict, prediction_interval
from .recall_law import fit_recall

PARAMETERS = ("A", "B", "E", "alpha", "beta")


class Interval(Record):
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float


class Residual(Record):
    """log(measured loss / fitted loss) of a cell in the fit."""

    cell: str
    fitted: float
    residual: float


class LossLaw(Record):
    """L(N, D) of one family; `scale` is the noise of a cell in log L, `note` the reason if there is no law."""

    family: str
    cells: int
    E: Interval | None = None
    A: Interval | None = None
    B: Interval | None = None
    alpha: Interval | None = None
    beta: Interval | None = None
    scale: float | None = None
    residuals: tuple[Residual, ...] = ()
    note: str = ""

    def parameters(self) -> np.ndarray | None:
        """log A, log B, log E, alpha, beta, or None."""
        if self.E is None:
            return None
        return np.array(
            [np.log(self.A.value), np.log(self.B.value), np.log(self.E.value), self.alpha.value, self.beta.value]
        )


class Prediction(Record):
    """Predictions of a held-out cell's loss: by the law fitted without its size, by a law of its budget's cells alone, and
    naively, by the loss of the next smaller size.

    Attributes:
        error, one_budget_error, naive_error: relative to the measured loss.
        one_budget: predicted by E + A / N^alpha through the fitted cells of its family and budget; None with fewer than four sizes.
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
    """The best size of a family at one training cost; `note` the reason if the parabola's minimum is not among the sizes."""

    family: str
    budget: str
    flops: float
    sizes: int
    coefficients: tuple[float, float, float]
    best_parameters: Interval | None
    best_loss: float | None
    note: str = ""


class RecallLaw(Record):
    """`recalled = 1 / (1 + c pairs^p length^q / state_bytes^s)` of one task at the largest budget; family "all" pools the arms.

    `exponents` are those of the quantities that vary: state_bytes (s), pairs (p), length (q).
    """

    family: str
    task: str
    cells: int
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
    """All fits of a study, and the missing cells."""

    version: int = 1
    study: str
    loss: str
    huber_delta: float
    bootstrap: int
    cells: int
    missing: tuple[str, ...]
    held_out_sizes: tuple[str, ...]
    laws: tuple[LossLaw, ...]
    predictions: tuple[Prediction, ...]
    comparisons: tuple[Comparison, ...]
    isoflops: tuple[IsoFlop, ...]
    recall: tuple[RecallLaw, ...]


def fit_study(plan: Plan, results: Sequence[CellResult]) -> StudyFit:
    """Fit all laws that the finished cells allow; the others carry a note with the reason.

    The result does not depend on the order of `results`.
    """
    study = plan.study
    by_name = {result.cell.name: result for result in results}
    main = [by_name[cell.name] for cell in plan.of_kind("main") if cell.name in by_name]
    laws, fits = [], {}
    for family in study.families:
        law, fit = _law(study, family, [r for r in main if r.cell.family == family and not r.cell.held_out])
        laws.append(law)
        if fit:
            fits[family] = fit
    return StudyFit(
        study=study.name,
        loss=study.evaluation.loss,
        huber_delta=study.fit.huber_delta,
        bootstrap=study.fit.bootstrap,
        cells=len(main),
        missing=tuple(cell.name for cell in plan.cells if cell.name not in by_name),
        held_out_sizes=study.held_out_sizes,
        laws=tuple(laws),
        predictions=tuple(_predictions(plan, main, fits)),
        comparisons=tuple(_comparisons(study, main, fits)),
        isoflops=tuple(_isoflops(study, main)) if study.budgets.kind == "flops" else (),
        # Of the largest budget only: smaller ones are limited by training, not by the state.
        recall=tuple(_recall_laws(study, [r for r in main if r.cell.budget == budget_names(study)[-1]])),
    )


def frontier(parameters: np.ndarray, flops: np.ndarray, cells: Sequence[CellResult], n: np.ndarray) -> np.ndarray:
    """Lowest loss at each training cost over the sizes `n`, `[..., len(flops)]`.

    Tokens are limited to the largest budget of `cells`, so that the law is not extrapolated in D.
    """
    tokens = flops[:, None] / (flops_per_parameter(cells) * n[None, :])
    tokens = np.minimum(tokens, max(r.cell.tokens for r in cells))
    losses = predict(parameters, np.broadcast_to(n, tokens.shape).ravel(), tokens.ravel())
    return losses.reshape(*losses.shape[:-1], *tokens.shape).min(axis=-1)


def flops_per_parameter(results: Sequence[CellResult]) -> float:
    """Mean FLOPs of a token for each non-embedding parameter; above 6 by the cost of logits and mixers."""
    return float(np.mean([r.cell.flops / r.cell.tokens / r.cell.parameters for r in results]))


def _law(study: StudyConfig, family: str, fitted_cells: Sequence[CellResult]) -> tuple[LossLaw, LossFit | None]:
    n, d, loss = (
        [r.cell.parameters for r in fitted_cells],
        [r.cell.tokens for r in fitted_cells],
        [r.loss for r in fitted_cells],
    )
    try:
        fit = fit_loss(
            # Budgets are compared by label: rounding to whole steps makes their tokens differ a little.
            n,
            d,
            loss,
            delta=study.fit.huber_delta,
            bootstrap=study.fit.bootstrap,
            seed=_seed(study, family),
        )
    except ValueError as error:
        return LossLaw(family=family, cells=len(fitted_cells), note=str(error)), None
    values = {}
    for i, name in enumerate(PARAMETERS):
        low, high = interval(fit, fit.resampled[:, i])
        estimate = (fit.parameters[i], low, high)
        value, low, high = estimate if name in ("alpha", "beta") else np.exp(estimate)
        values[name] = Interval(value=value, low=low, high=high)
    residuals = tuple(
        Residual(cell=r.cell.name, fitted=float(np.exp(np.log(r.loss) - residual)), residual=float(residual))
        for r, residual in zip(fitted_cells, fit.residuals, strict=True)
    )
    return LossLaw(family=family, cells=len(fitted_cells), scale=fit.scale, residuals=residuals, **values), fit


def _predictions(plan: Plan, main: Sequence[CellResult], fits: dict[str, LossFit]) -> list[Prediction]:
    study = plan.study
    sizes = list(study.sizes)
    predictions = []
    for result in main:
        cell = result.cell
        fit = fits.get(cell.family)
        if not cell.held_out or fit is None:
            continue
        value = float(predict(fit.parameters, cell.parameters, cell.tokens))
        low, high = prediction_interval(fit, cell.parameters, cell.tokens, seed=_seed(study, cell.name))
        one_budget = _by_one_budget(study, [r for r in main if r.cell.budget == cell.budget], result)
        smaller = [
            other
            for other in plan.of_kind("main")
            if (other.family, other.budget) == (cell.family, cell.budget)
            and not other.held_out
            and other.parameters < cell.parameters
        ]
        nearest = max((other.parameters for other in smaller), default=None)
        nearest_names = {other.name for other in smaller if other.parameters == nearest}
        naive_losses = [r.loss for r in main if r.cell.name in nearest_names]
        naive_loss = float(np.mean(naive_losses)) if naive_losses else None
        predictions.append(
            Prediction(
                cell=cell.name,
                family=cell.family,
                measured=result.loss,
                predicted=Interval(value=value, low=low, high=high),
                error=value / result.loss - 1,
                one_budget=one_budget,
                one_budget_error=None if one_budget is None else one_budget / result.loss - 1,
                naive=naive_loss,
                naive_error=None if naive_loss is None else naive_loss / result.loss - 1,
            )
        )
    return sorted(predictions, key=lambda p: (p.family, sizes.index(_size_of(main, p.cell)), p.cell))


def _by_one_budget(study: StudyConfig, budget_cells: Sequence[CellResult], held_out: CellResult) -> float | None:
    fitted_cells = [r for r in budget_cells if r.cell.family == held_out.cell.family and not r.cell.held_out]
    n = [r.cell.parameters for r in fitted_cells]
    if len(set(n)) < LEAST_SIZES:
        return None
    parameters = fit_sizes(n, [r.loss for r in fitted_cells], delta=study.fit.huber_delta)
    return float(predict(parameters, held_out.cell.parameters, held_out.cell.tokens))


def _comparisons(study: StudyConfig, main: Sequence[CellResult], fits: dict[str, LossFit]) -> list[Comparison]:
    """Compare every pair of families at the largest compute that cells of both reached, held-out cells included."""
    pairs = []
    families = [family for family in study.families if family in fits]
    by_family = {family: [r for r in main if r.cell.family == family] for family in families}
    for i, first in enumerate(families):
        for second in families[i + 1 :]:
            flops = min(max(r.cell.flops for r in by_family[family]) for family in (first, second))
            best = {}
            for family in (first, second):
                n = np.array(sorted({r.cell.parameters for r in by_family[family]}), dtype=float)
                stack = np.vstack([fits[family].parameters, fits[family].resampled])
                best[family] = frontier(stack, np.array([flops]), by_family[family], n)[:, 0]
            ratio = best[first] / best[second]
            fit = min((fits[first], fits[second]), key=lambda fit: fit.degrees_of_freedom)
            low, high = interval(fit, ratio[1:])
            pairs.append(
                Comparison(first=first, second=second, flops=flops, ratio=Interval(value=ratio[0], low=low, high=high))
            )
    return pairs


def _isoflops(study: StudyConfig, main: Sequence[CellResult]) -> list[IsoFlop]:
    isoflops = []
    for family in study.families:
        for budget in dict.fromkeys(r.cell.budget for r in main):
            cells = [r for r in main if (r.cell.family, r.cell.budget) == (family, budget)]
            n = np.array([r.cell.parameters for r in cells], dtype=float)
            if len(np.unique(n)) < 3:
                continue
            loss = np.array([r.loss for r in cells])
            coefficients = fit_parabola(n, loss)
            best, low_loss = minimum(coefficients)
            inside = bool(n.min() < best < n.max())
            freedom = max(len(cells) - 3, 1)
            scale = float(np.sqrt(((np.log(loss) - np.vander(np.log(n), 3) @ coefficients) ** 2).sum() / freedom))
            sizes = resample_minimum(n, loss, scale, bootstrap=study.fit.bootstrap, seed=_seed(study, family, budget))
            sizes = sizes[np.isfinite(sizes)]
            isoflops.append(
                IsoFlop(
                    family=family,
                    budget=budget,
                    flops=float(np.mean([r.cell.flops for r in cells])),
                    sizes=len(np.unique(n)),
                    coefficients=tuple(map(float, coefficients)),
                    best_parameters=_percentiles(float(best), sizes) if inside else None,
                    best_loss=float(low_loss) if inside else None,
                    note="" if inside else "the lowest loss lies at an edge of the sizes",
                )
            )
    return isoflops


def _recall_laws(study: StudyConfig, main: Sequence[CellResult]) -> list[RecallLaw]:
    laws = []
    tasks = dict.fromkeys(row.task for r in main for row in r.recall)
    for task in tasks:
        for family in (*study.families, "all"):
            rows = [row for r in main if family in (r.cell.family, "all") for row in r.recall if row.task == task]
            try:
                fit = fit_recall(rows, bootstrap=study.fit.bootstrap, seed=_seed(study, family, task))
            except ValueError as error:
                laws.append(RecallLaw(family=family, task=task, cells=len(rows), note=str(error)))
                continue
            exponents = {
                name: _percentiles(float(fit.parameters[i]), fit.resampled[:, i])
                for i, name in enumerate(fit.names)
                if name != "log_c"
            }
            measured = np.array([row.correct / row.queries for row in rows])
            rmse = float(np.sqrt(((fit.predicted - measured) ** 2).mean()))
            laws.append(RecallLaw(family=family, task=task, cells=len(rows), exponents=exponents, rmse=rmse))
    return laws


def _percentiles(value: float, values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (value, value)
    return Interval(value=value, low=float(low), high=float(high))


def _size_of(main: Sequence[CellResult], name: str) -> str:
    return next(r.cell.size for r in main if r.cell.name == name)


def _seed(study: StudyConfig, *names: str) -> int:
    """A seed from the study's name, so that a study has the same intervals on every machine."""
    return int.from_bytes(hashlib.sha256("/".join((study.name, *names)).encode()).digest()[:4], "big")
