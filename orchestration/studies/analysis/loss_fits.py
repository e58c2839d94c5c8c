"""Fits of the loss laws of a study: each family alone, all with common exponents, with repeated data, and alternative laws."""

import hashlib
from collections.abc import Sequence

import numpy as np

from ..config import StudyConfig
from ..results import CellResult
from ..statistics.cells import Cells, average_seeds
from ..statistics.choice import cross_validate
from ..statistics.law_fit import LawFit, fit_law
from ..statistics.laws import CHINCHILLA, DATA_CONSTRAINED, NO_FLOOR, ONE_EXPONENT, joint_law
from ..statistics.outliers import find_outliers
from .measured import cells_of
from .records import Interval, JointLaw, LawChoice, LossLaw, RepeatedData, Residual, Side

RIVALS = (CHINCHILLA, ONE_EXPONENT, NO_FLOOR)


def fit_family(study: StudyConfig, family: str, results: Sequence[CellResult]) -> tuple[LossLaw, LawFit | None]:
    """Fit the law of one family to the cells that are not held out; returns its record, and the fit itself if there is one."""
    law = LossLaw(family=family, cells=len(results))
    try:
        cells = cells_of(results)
        outliers = find_outliers(CHINCHILLA, cells, delta=study.fit.huber_delta)
        kept = cells.keep(~outliers)
        fit = fit_law(
            CHINCHILLA, kept, delta=study.fit.huber_delta, bootstrap=study.fit.bootstrap, seed=seed_of(study, family)
        )
    except ValueError as error:
        return law.model_copy(update={"note": str(error)}), None
    names = [results[rows[0]].cell.name for rows in kept.rows]
    left_out = [results[row].cell.name for rows, out in zip(cells.rows, outliers, strict=True) if out for row in rows]
    alpha, beta = fit.resampled[:, 3], fit.resampled[:, 4]
    share = beta / np.maximum(alpha + beta, 1e-12)
    low, high = fit.interval_of(share)
    fitted = kept.log_loss - fit.residuals
    return LossLaw(
        family=family,
        cells=sum(map(len, kept.rows)),
        distinct=len(kept),
        E=parameter_interval(fit, "E"),
        A=parameter_interval(fit, "A"),
        B=parameter_interval(fit, "B"),
        alpha=parameter_interval(fit, "alpha"),
        beta=parameter_interval(fit, "beta"),
        size_exponent=Interval(
            value=float(fit.fitted[4] / max(fit.fitted[3] + fit.fitted[4], 1e-12)), low=low, high=high
        ),
        scale=fit.scale,
        misfit=fit.misfit,
        lack_of_fit=fit.lack_of_fit,
        residuals=tuple(
            Residual(cell=name, fitted=float(np.exp(value)), residual=float(residual))
            for name, value, residual in zip(names, fitted, fit.residuals, strict=True)
        ),
        outliers=tuple(left_out),
        warnings=tuple(fit.warnings()),
    ), fit


def parameter_interval(fit: LawFit, name: str) -> Interval:
    """A parameter of a fit with its interval and the marks at bounds."""
    low, high = fit.interval(name)
    values: dict[Side, float] = {"value": fit.value(name), "low": low, "high": high}
    return Interval(**values, at_bound=tuple(key for key, value in values.items() if fit.at_bound(name, value)))


def law_choices(study: StudyConfig, family: str, results: Sequence[CellResult]) -> list[LawChoice]:
    """Rank the laws in `RIVALS` by their error on whole sizes and whole budgets of one family, each left out of the fit."""
    cells = cells_of(results)
    groups = [[getattr(results[rows[0]].cell, kind) for rows in cells.rows] for kind in ("size", "budget")]
    scores = cross_validate(RIVALS, cells, groups, delta=study.fit.huber_delta)
    return [
        LawChoice(
            family=family, law=score.law.name, error=score.error if np.isfinite(score.error) else None, note=score.note
        )
        for score in scores
    ]


def fit_joint(study: StudyConfig, by_family: dict[str, Sequence[CellResult]]) -> JointLaw:
    """Fit one law to all families, with exponents in common."""
    cells = _with_family(list(by_family.values()))
    try:
        fit = fit_law(
            joint_law(len(by_family)),
            cells,
            delta=study.fit.huber_delta,
            bootstrap=study.fit.bootstrap,
            seed=seed_of(study, "joint"),
        )
    except ValueError as error:
        return JointLaw(cells=len(cells), note=str(error))
    alpha, beta = parameter_interval(fit, "alpha"), parameter_interval(fit, "beta")
    return JointLaw(cells=len(cells), scale=fit.scale, alpha=alpha, beta=beta)


def _with_family(families: Sequence[Sequence[CellResult]]) -> Cells:
    rows = [(float(k), r) for k, results in enumerate(families) for r in results]
    columns = {
        "n": [float(r.cell.parameters) for _, r in rows],
        "d": [float(r.cell.tokens) for _, r in rows],
        "family": [k for k, _ in rows],
    }
    return average_seeds(columns, [r.loss for _, r in rows])


def fit_repeated(study: StudyConfig, family: str, results: Sequence[CellResult]) -> RepeatedData | None:
    """The law for repeated data; None if no cell sees its data more than once."""
    epochs = max((r.cell.epochs or 0.0 for r in results), default=0.0)
    if epochs <= 1:
        return None
    law = RepeatedData(family=family, epochs=epochs)
    try:
        fit = fit_law(
            DATA_CONSTRAINED,
            cells_of(results),
            delta=study.fit.huber_delta,
            bootstrap=min(200, study.fit.bootstrap),
            seed=seed_of(study, family, "repeated"),
        )
    except ValueError as error:
        return law.model_copy(update={"note": str(error)})
    return law.model_copy(update={name: parameter_interval(fit, name) for name in ("R", "alpha", "beta")})


def seed_of(study: StudyConfig, *names: str) -> int:
    """A random seed derived from the study's name, so that a study has the same intervals on every machine."""
    return int.from_bytes(hashlib.sha256("/".join((study.name, *names)).encode()).digest()[:4], "big")
