"""The fits of a study: a pure function of the plan and the finished cells. `loss_fits.py` has the laws, this file the rest."""

from collections.abc import Sequence

import numpy as np

from ....models.common.errors import UserError
from ..config import StudyConfig
from ..plan import Plan, budget_names
from ..results import CellResult
from ..statistics.isoflop import LEAST_SIZES, best_size_interval, fit_parabola
from ..statistics.law_fit import LawFit, estimate
from ..statistics.laws import SIZES
from ..statistics.optimum import frontier, optimum
from ..statistics.recall_law import fit_recall
from .loss_fits import fit_family, fit_joint, fit_repeated, law_choices, seed_of
from .measured import as_planned, cells_of, costs_of, is_usable, sizes_of
from .records import Comparison, Interval, IsoFlop, Optimum, Prediction, RecallLaw, Side, StudyFit

OPTIMA = 3  # training costs at which the best size is stated, from the middle of the study's to the largest


def fit_study(plan: Plan, results: Sequence[CellResult]) -> StudyFit:
    """Fit all laws that the finished cells allow; the others carry a note with the reason.

    The result does not depend on the order of `results`.

    Raises:
        UserError: records that do not belong together (`as_planned`), or none of them is usable.
    """
    study = plan.study
    finished = as_planned(plan, results)
    done = {r.cell.name for r in finished}
    usable = [r for r in finished if r.cell.kind == "main" and is_usable(r)]
    unusable = tuple(r.cell.name for r in finished if not is_usable(r))
    if unusable and not usable:
        raise UserError(f"study {study.name}: no finished cell has a positive loss, first {unusable[0]}: all diverged")
    fitted = {family: _fitted(usable, family) for family in study.families}
    laws, fits = [], {}
    for family, cells in fitted.items():
        law, fit = fit_family(study, family, cells)
        laws.append(law)
        if fit:
            fits[family] = fit
    kept = {law.family: [r for r in fitted[law.family] if r.cell.name not in law.outliers] for law in laws}
    return StudyFit(
        study=study.name,
        loss=study.evaluation.loss,
        huber_delta=study.fit.huber_delta,
        bootstrap=study.fit.bootstrap,
        cells=len(usable),
        missing=tuple(cell.name for cell in plan.cells if cell.name not in done),
        unusable=unusable,
        held_out_sizes=study.held_out_sizes,
        laws=tuple(laws),
        predictions=tuple(_predictions(plan, usable, fits)),
        comparisons=tuple(_comparisons(study, usable, fits)),
        isoflops=tuple(_isoflops(study, fitted)) if study.budgets.kind == "flops" else (),
        optima=tuple(optimum_ for family in fits for optimum_ in _optima(family, fits[family], kept[family])),
        choice=tuple(choice for family in fits for choice in law_choices(study, family, kept[family])),
        joint=fit_joint(study, {family: kept[family] for family in fits}) if len(fits) > 1 else None,
        repeated=tuple(law for family in fits if (law := fit_repeated(study, family, kept[family])) is not None),
        # Of the largest budget only: smaller ones are limited by training, not by the state.
        recall=tuple(_recall_laws(study, [r for r in usable if r.cell.budget == budget_names(study)[-1]])),
    )


def _fitted(main: Sequence[CellResult], family: str) -> list[CellResult]:
    return [r for r in main if r.cell.family == family and not r.cell.held_out]


def _predictions(plan: Plan, main: Sequence[CellResult], fits: dict[str, LawFit]) -> list[Prediction]:
    study = plan.study
    sizes = list(study.sizes)
    predictions = []
    for result in main:
        cell = result.cell
        fit = fits.get(cell.family)
        if not cell.held_out or fit is None:
            continue
        at = {"n": np.array([float(cell.parameters)]), "d": np.array([float(cell.tokens)])}
        value = float(fit.predict(at)[0])
        low, high = fit.prediction_interval(at, seed=seed_of(study, cell.name))
        one_budget = _by_one_budget(study, [r for r in main if r.cell.budget == cell.budget], result)
        naive_loss = _next_smaller(plan, main, result)
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
    size = {r.cell.name: sizes.index(r.cell.size) for r in main}
    return sorted(predictions, key=lambda p: (p.family, size[p.cell], p.cell))


def _next_smaller(plan: Plan, main: Sequence[CellResult], held_out: CellResult) -> float | None:
    """Mean loss of the largest fitted size below, at the same budget; None if that cell is not finished."""
    cell = held_out.cell
    smaller = [
        other
        for other in plan.of_kind("main")
        if (other.family, other.budget) == (cell.family, cell.budget)
        and not other.held_out
        and other.parameters < cell.parameters
    ]
    nearest = max((other.parameters for other in smaller), default=None)
    names = {other.name for other in smaller if other.parameters == nearest}
    losses = [r.loss for r in main if r.cell.name in names]
    return float(np.mean(losses)) if losses else None


def _by_one_budget(study: StudyConfig, budget_cells: Sequence[CellResult], held_out: CellResult) -> float | None:
    """Predict a held-out cell's loss from the cells of its budget: by a power law of N, or a parabola where tokens fall as N
    grows."""
    fitted_cells = _fitted(budget_cells, held_out.cell.family)
    if len(sizes_of(fitted_cells)) < LEAST_SIZES:
        return None
    if study.budgets.kind == "flops":
        parabola = fit_parabola([r.cell.parameters for r in fitted_cells], [r.loss for r in fitted_cells])
        return float(parabola.loss(held_out.cell.parameters))
    best, _ = estimate(SIZES, cells_of(fitted_cells), delta=study.fit.huber_delta)
    return float(SIZES.predict(best, {"n": np.array([float(held_out.cell.parameters)])})[0])


def _comparisons(study: StudyConfig, main: Sequence[CellResult], fits: dict[str, LawFit]) -> list[Comparison]:
    """Compare every pair of families at the largest compute that cells of both reached, held-out cells included."""
    pairs = []
    by_family = {family: [r for r in main if r.cell.family == family] for family in fits}
    for i, first in enumerate(families := list(fits)):
        for second in families[i + 1 :]:
            flops = min(max(r.cell.flops for r in by_family[family]) for family in (first, second))
            best = {}
            for family in (first, second):
                cells, fit = by_family[family], fits[family]
                stack = np.vstack([fit.fitted, fit.resampled])
                most = max(r.cell.tokens for r in cells)
                best[family] = frontier(
                    fit.law, stack, np.array([flops]), costs_of(cells), sizes_of(cells), most_tokens=most
                )[:, 0]
            ratio = best[first] / best[second]
            fit = min((fits[first], fits[second]), key=lambda fit: fit.degrees_of_freedom)
            low, high = fit.interval_of(ratio[1:])
            pairs.append(
                Comparison(first=first, second=second, flops=flops, ratio=Interval(value=ratio[0], low=low, high=high))
            )
    return pairs


def _optima(family: str, fit: LawFit, cells: Sequence[CellResult]) -> list[Optimum]:
    costs = costs_of(cells)
    spent = [r.cell.flops for r in cells]
    flops = np.geomspace(np.sqrt(min(spent) * max(spent)), max(spent), OPTIMA)
    sizes, tokens = optimum(fit.law, fit.fitted, flops, costs)
    all_sizes, all_tokens = optimum(fit.law, fit.resampled, flops, costs)
    found = []
    for i, cost in enumerate(flops):
        size = fit.interval_of(all_sizes[:, i])
        edges: dict[Side, float] = {"value": sizes[i], "low": size[0], "high": size[1]}
        at_edge: tuple[Side, ...] = tuple(
            key for key, n in edges.items() if n <= costs.n[0] * 1.01 or n >= costs.n[-1] / 1.01
        )
        low, high = fit.interval_of(all_tokens[:, i])
        most = max(r.cell.tokens for r in cells)
        ends: dict[Side, float] = {"value": tokens[i], "low": low, "high": high}
        beyond: tuple[Side, ...] = tuple(key for key, d in ends.items() if d > most)
        found.append(
            Optimum(
                family=family,
                flops=float(cost),
                parameters=Interval(value=float(sizes[i]), low=size[0], high=size[1], at_bound=at_edge),
                tokens=Interval(value=float(tokens[i]), low=low, high=high, at_bound=beyond),
            )
        )
    return found


def _isoflops(study: StudyConfig, fitted: dict[str, list[CellResult]]) -> list[IsoFlop]:
    """The parabola of each family and budget through the cells that are not held out."""
    isoflops = []
    for family, main in fitted.items():
        cells = {budget: [r for r in main if r.cell.budget == budget] for budget in budget_names(study)}
        parabolas = {
            budget: fit_parabola([r.cell.parameters for r in some], [r.loss for r in some])
            for budget, some in cells.items()
            if len(sizes_of(some)) >= 3
        }
        for budget, parabola in parabolas.items():
            sizes = sizes_of(cells[budget])
            best = parabola.best_size
            inside = bool(sizes.min() < best < sizes.max())
            others = [other for name, other in parabolas.items() if name != budget]
            interval = best_size_interval(parabola, others) if inside else None
            if not inside:
                note = "the lowest loss lies at an edge of the sizes"
            elif interval is None:
                note = "no interval: the sizes do not tell the bend from the noise; four sizes at several costs do"
            else:
                note = ""
            a, b, c = map(float, parabola.coefficients)
            isoflops.append(
                IsoFlop(
                    family=family,
                    budget=budget,
                    flops=float(np.mean([r.cell.flops for r in cells[budget]])),
                    sizes=len(sizes),
                    centre=float(np.exp(parabola.centre)),
                    coefficients=(a, b, c),
                    best_parameters=best if inside else None,
                    interval=interval,
                    best_loss=float(parabola.loss(best)) if inside else None,
                    note=note,
                )
            )
    return isoflops


def _recall_laws(study: StudyConfig, main: Sequence[CellResult]) -> list[RecallLaw]:
    laws = []
    tasks = dict.fromkeys(row.task for r in main for row in r.recall)
    for task in tasks:
        for family in (*study.families, "all"):
            pairs = [(row, r.cell.name) for r in main if family in (r.cell.family, "all") for row in r.recall]
            rows = [row for row, _ in pairs if row.task == task]
            models = [model for row, model in pairs if row.task == task]
            law = RecallLaw(family=family, task=task, cells=len(rows), models=len(set(models)))
            try:
                fit = fit_recall(rows, models)
            except ValueError as error:
                laws.append(law.model_copy(update={"note": str(error)}))
                continue
            exponents = {}
            for name in fit.names[1:]:
                low, high = fit.interval(name)
                exponents[name] = Interval(value=float(fit.parameters[fit.names.index(name)]), low=low, high=high)
            measured = np.array([row.correct / row.queries for row in rows])
            rmse = float(np.sqrt(((fit.predicted - measured) ** 2).mean()))
            laws.append(law.model_copy(update={"exponents": exponents, "rmse": rmse, "note": fit.warning()}))
    return laws
