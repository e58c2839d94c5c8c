"""A law fitted to the families of a table, with its estimates, predictions and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....evals.figures.style import BASELINE, PALETTE, figure
from ....models.common.errors import UserError
from ..statistics.cells import average_seeds
from ..statistics.law_fit import LawFit, fit_law
from ..statistics.laws import CHINCHILLA, Law
from ..statistics.optimum import Costs, optimum
from ..statistics.outliers import find_outliers

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
ALL = "all families"


@dataclass(frozen=True)
class Refit:
    """Fits of a law by family, under the one key `ALL` for a joint law.

    Attributes:
        notes: why a family has no fit.
        outliers: names of runs that were left out, by family.
        fitted, held_out: rows by family; those of held-out sizes enter no fit.
    """

    law: Law
    fits: dict[str, LawFit]
    notes: dict[str, str]
    outliers: dict[str, list[str]]
    fitted: dict[str, list[Row]]
    held_out: dict[str, list[Row]]
    loss: str

    def table(self, level: float = 0.95) -> pandas.DataFrame:
        """A table of every parameter of every fit: its interval, whether it is a bound of the fit, and the fit's warnings."""
        import pandas

        rows = []
        for family, fit in self.fits.items():
            warnings = fit.warnings()
            for name in fit.law.names:
                low, high = fit.interval(name, level)
                value = fit.value(name)
                about = "; ".join(w for w in warnings if w.startswith((f"{name} ", "the law", "alpha and beta")))
                row = {"family": family, "parameter": name, "value": value, "low": low, "high": high}
                rows.append(row | {"at_bound": fit.at_bound(name, value), "warning": about})
        return pandas.DataFrame(rows)

    def predictions(self, level: float = 0.95) -> pandas.DataFrame:
        """Held-out runs: measured, predicted with the interval of one run, and the error relative to the measured loss."""
        import pandas

        rows = []
        for family, fit in self.fits.items():
            for row in self.held_out.get(family, ()):
                at = _columns([row], self.law)
                value = float(fit.predict(at)[0])
                low, high = fit.prediction_interval(at, seed=len(rows), level=level)
                known = {"family": family, "name": row["name"], "measured": row["loss"], "predicted": value}
                rows.append(known | {"low": low, "high": high, "error": value / row["loss"] - 1})
        return pandas.DataFrame(rows)

    def optimum(self, flops: Sequence[float], level: float = 0.95) -> pandas.DataFrame:
        """Best size and tokens at training costs, by each size's own FLOPs a token, among the fitted sizes; with intervals.

        Raises:
            UserError: a law without n and d.
        """
        import pandas

        if not {"n", "d"} <= set(self.law.columns) or "family" in self.law.columns:
            raise UserError(f"the law {self.law.name} has no best size: a law of n and d for each family has one")
        rows = []
        for family, fit in self.fits.items():
            some = self.fitted[family]
            costs = Costs.of([row["n"] for row in some], [row["flops"] / row["d"] for row in some])
            sizes, tokens = optimum(fit.law, fit.fitted, np.asarray(flops, dtype=float), costs)
            resampled, _ = optimum(fit.law, fit.resampled, np.asarray(flops, dtype=float), costs)
            for i, cost in enumerate(flops):
                low, high = fit.interval_of(resampled[:, i], level)
                edge = not costs.n[0] * 1.01 < sizes[i] < costs.n[-1] / 1.01
                known = {"family": family, "flops": cost, "n": sizes[i], "low": low, "high": high}
                rows.append(known | {"d": tokens[i], "at_edge": edge})
        return pandas.DataFrame(rows)

    def plot_residuals(self, path: str | Path) -> Path:
        """Draw the residuals of each law against tokens; returns the path."""
        with figure(Path(path), f"Residuals of {self.law.name}", "training tokens", "measured / fitted - 1") as axes:
            axes.axhline(0, color=BASELINE, linestyle="--", linewidth=1)
            for color, (family, fit) in zip(PALETTE, self.fits.items(), strict=False):
                column = "d" if "d" in fit.cells.columns else "n"
                axes.scatter(fit.cells.columns[column], np.expm1(fit.residuals), 24, color=color, label=family)
            axes.set_xscale("log")
            axes.legend()
        return Path(path)

    def plot_interval(self, path: str | Path, parameter: str) -> Path:
        """Draw the resamples of one parameter of each fit with its estimate; returns the path.

        Raises:
            UserError: the law has no such parameter.
        """
        if parameter not in self.law.names:
            raise UserError(f"{self.law.name} has no parameter {parameter!r}: {', '.join(self.law.names)}")
        i = self.law.names.index(parameter)
        with figure(Path(path), f"{parameter} of {self.law.name}", parameter, "resamples") as axes:
            for color, (family, fit) in zip(PALETTE, self.fits.items(), strict=False):
                values = fit.law.natural(fit.resampled)[:, i]
                axes.hist(values, bins=40, color=color, alpha=0.5, label=family)
                axes.axvline(fit.value(parameter), color=color)
            axes.legend()
        return Path(path)


def refit_rows(
    rows: Sequence[Row],
    law: Law,
    held_out_sizes: Sequence[str],
    loss: str,
    *,
    delta: float,
    bootstrap: int,
    seed: int,
    weights: str | None,
    outliers: bool,
) -> Refit:
    """Fit `law` to each family of the rows; see `StudyTable.refit`."""
    names = list(dict.fromkeys(row["family"] for row in rows))
    together = "family" in law.columns
    groups = {ALL: list(rows)} if together else {f: [row for row in rows if row["family"] == f] for f in names}
    result = Refit(law, {}, {}, {}, {}, {}, loss)
    for group, some in groups.items():
        numbered = [row | {"family": float(names.index(row["family"]))} for row in some] if together else some
        result.fitted[group] = fitted = [row for row in numbered if row["size"] not in held_out_sizes]
        result.held_out[group] = [row for row in numbered if row["size"] in held_out_sizes]
        try:
            cells = average_seeds(_columns(fitted, law), [row["loss"] for row in fitted])
            out = np.zeros(len(cells), dtype=bool)
            if outliers and law is CHINCHILLA:
                out = find_outliers(law, cells, delta=delta)
            result.outliers[group] = [
                str(fitted[row]["name"])
                for indices, is_out in zip(cells.rows, out, strict=True)
                if is_out
                for row in indices
            ]
            kept = cells.keep(~out)
            own = (
                [float(np.sum([fitted[row][weights] for row in indices])) for indices in kept.rows] if weights else None
            )
            fit = fit_law(
                law, kept, delta=delta, bootstrap=bootstrap, seed=seed, weights=None if own is None else np.array(own)
            )
        except ValueError as error:
            result.notes[group] = str(error)
            continue
        result.fits[group] = fit
    return result


def _columns(rows: Sequence[Row], law: Law) -> dict[str, np.ndarray]:
    """The law's columns, and n and d, which tell cells apart."""
    return {name: np.array([float(row[name]) for row in rows]) for name in dict.fromkeys((*law.columns, "n", "d"))}
