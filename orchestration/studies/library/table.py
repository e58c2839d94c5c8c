"""Tables of runs for scaling laws, from a study's folder, a `study.json`, or other people's numbers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from ....evals.figures.style import PALETTE, figure
from ....models.common.errors import UserError
from ....models.common.files import read_json, write_text
from ..analysis.measured import as_planned, is_usable
from ..export import ExportedStudy
from ..folder import StudyFolder
from ..plan import Plan
from ..results import CellResult
from ..statistics.cells import average_seeds
from ..statistics.choice import cross_validate
from ..statistics.isoflop import best_size_interval, fit_parabola
from ..statistics.laws import CHINCHILLA, LAWS, NO_FLOOR, ONE_EXPONENT, Law
from ..statistics.score_law import ScoreFit, fit_scores
from .refit import Refit, refit_rows

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
NEEDED = ("n", "d", "loss")


@dataclass(frozen=True)
class StudyTable:
    """A table of runs, one row per run.

    Attributes:
        rows: with the columns `name`, `family`, `size`, `budget`, `seed`, `n` (parameters without embeddings), `d` (training
            tokens), `u` (unique tokens among them), `flops`, `loss`, `held_out`, and every metric of the run by its name.
        loss: what `loss` is, for titles.
    """

    name: str
    rows: tuple[Row, ...]
    loss: str = "loss"

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row["family"] for row in self.rows))

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame."""
        import pandas

        return pandas.DataFrame(list(self.rows))

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as a CSV file, which `load` reads; returns its path."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [columns, *([row.get(column, "") for column in columns] for row in self.rows)]
        write_text(Path(path), "".join(",".join(map(_csv_text, line)) + "\n" for line in lines))
        return Path(path)

    def refit(
        self,
        law: Law | str = CHINCHILLA,
        *,
        hold_out: Sequence[str] | None = None,
        delta: float = 1e-2,
        weights: str | None = None,
        outliers: bool = True,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> Refit:
        """Fit a law to each family.

        Args:
            law: a law or the name of one in `LAWS`; a law with a column `family` is fitted to all families together.
            hold_out: sizes that do not enter and are predicted; by default those that the study holds out.
            delta: of the Huber loss on log L.
            weights: a column of the rows that weighs them; by default cells weigh by what their seeds tell.
            outliers: leave out cells that are far from the law through the others (Chinchilla's law only).

        Raises:
            UserError: an unknown law, size or column, or rows without a positive loss.
        """
        chosen = _law(law)
        held = (
            tuple(dict.fromkeys(r["size"] for r in self.rows if r["held_out"])) if hold_out is None else tuple(hold_out)
        )
        sizes = list(dict.fromkeys(row["size"] for row in self.rows))
        if unknown := [size for size in held if size not in sizes]:
            raise UserError(f"hold_out: no size is called {unknown[0]!r}: {self.name} has {', '.join(map(str, sizes))}")
        if weights is not None and any(weights not in row for row in self.rows):
            raise UserError(f"weights: no column is called {weights!r}")
        options = {"delta": delta, "bootstrap": bootstrap, "seed": seed, "weights": weights, "outliers": outliers}
        return refit_rows(self.rows, chosen, held, self.loss, **options)

    def choose(
        self, laws: Sequence[Law | str] = (CHINCHILLA, ONE_EXPONENT, NO_FLOOR), *, delta: float = 1e-2
    ) -> pandas.DataFrame:
        """Rank the laws of each family by their error on whole sizes and budgets left out of the fit, lowest first."""
        import pandas

        found = []
        for family in self.families:
            rows = [row for row in self.rows if row["family"] == family and not row["held_out"]]
            cells = average_seeds(
                {name: [row[name] for row in rows] for name in ("n", "d", "u")}, [row["loss"] for row in rows]
            )
            groups = [[rows[indices[0]][kind] for indices in cells.rows] for kind in ("size", "budget")]
            for score in cross_validate([_law(law) for law in laws], cells, groups, delta=delta):
                found.append({"family": family, "law": score.law.name, "error": score.error, "note": score.note})
        return pandas.DataFrame(found)

    def isoflops(self) -> pandas.DataFrame:
        """The best size at each budget by parabolas, with 95% intervals; for tables whose budgets are training costs."""
        import pandas

        found = []
        for family in self.families:
            groups: dict[Any, list[Row]] = {}
            for row in self.rows:
                if row["family"] == family and not row["held_out"]:
                    groups.setdefault(row["budget"], []).append(row)
            enough = {budget: rows for budget, rows in groups.items() if len({row["n"] for row in rows}) >= 3}
            parabolas = {
                b: fit_parabola([r["n"] for r in rows], [r["loss"] for r in rows]) for b, rows in enough.items()
            }
            for budget, parabola in parabolas.items():
                low, high = best_size_interval(parabola, [p for b, p in parabolas.items() if b != budget]) or (
                    np.nan,
                    np.nan,
                )
                found.append({"family": family, "budget": budget, "n": parabola.best_size, "low": low, "high": high})
        return pandas.DataFrame(found)

    def fit_scores(self, metric: str, *, chance: float = 0.0) -> ScoreFit:
        """A benchmark's score as a curve of the loss, over all runs that have it.

        Raises:
            UserError: too few runs have it, or it does not follow the loss.
        """
        rows = [row for row in self.rows if metric in row]
        try:
            return fit_scores([row["loss"] for row in rows], [row[metric] for row in rows], chance=chance)
        except ValueError as error:
            raise UserError(f"{metric}: {error}") from error

    def plot_loss(self, path: str | Path, refit: Refit | None = None) -> Path:
        """Draw loss against training FLOPs, with the lines of a fit through each size; returns the path."""
        with figure(Path(path), self.name, "training FLOPs", self.loss) as axes:
            for color, family in zip(PALETTE, self.families, strict=False):
                rows = [row for row in self.rows if row["family"] == family]
                axes.scatter([r["flops"] for r in rows], [r["loss"] for r in rows], 20, color=color, label=family)
                fit = refit.fits.get(family) if refit is not None else None
                if fit is None:
                    continue
                for n in sorted({row["n"] for row in rows}):
                    same = sorted((row for row in rows if row["n"] == n), key=lambda row: row["flops"])
                    columns = {key: np.array([float(row[key]) for row in same]) for key in ("n", "d", "u")}
                    axes.plot([row["flops"] for row in same], fit.predict(columns), color=color, linewidth=1)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.legend()
        return Path(path)


def load(source: str | Path) -> StudyTable:
    """Load a study from its folder, from a report's `study.json`, or a table from a CSV file (`from_table`).

    Cells that are not finished, sweep cells, and runs whose loss is no positive number are not in the table.

    Raises:
        UserError: it is none of these.
    """
    path = Path(source)
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return from_table(list(csv.DictReader(file)), name=path.stem)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix == ".json":
        try:
            study = ExportedStudy.model_validate(read_json(path))
        except ValidationError as error:
            raise UserError(f"{path} is no study.json of this version: name the one of a report") from error
        return from_results(study.plan, study.results)
    folder = StudyFolder(path)
    plan = folder.load_plan()
    return from_results(plan, folder.results(plan))


def from_table(table: Any, *, name: str = "table") -> StudyTable:
    """A table from other people's runs: a data frame, a mapping of columns, or a list of mappings.

    Columns: `n`, `d` and `loss` are needed; `family` ("all" if left out), `size` and `budget` (from n and d), `u` (d), `flops`
    (6 n d), `seed` and `held_out` are not; others are kept as metrics.

    Raises:
        UserError: a needed column is missing, or a value is not a positive number.
    """
    if hasattr(table, "to_dict"):
        table = table.to_dict("records")
    if isinstance(table, Mapping):
        table = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    rows = []
    for number, given in enumerate(table):
        if missing := [key for key in NEEDED if key not in given]:
            raise UserError(f"{name}: there is no column {missing[0]!r}: n, d and loss are needed")
        row = {str(key): _number(value) for key, value in given.items()}
        for key in NEEDED:
            if not isinstance(row[key], float) or not np.isfinite(row[key]) or row[key] <= 0:
                raise UserError(f"{name}: {key} of row {number} is {given[key]!r}: positive numbers have a law")
        own = {
            "name": str(number),
            "family": "all",
            "size": f"{row['n']:.3g}",
            "budget": f"{row['d']:.3g}",
            "seed": 0,
            "u": row["d"],
            "flops": 6 * row["n"] * row["d"],
            "held_out": False,
        }
        row |= {key: str(given[key]) for key in ("name", "family", "size", "budget") if key in given}
        rows.append(own | row | {"held_out": str(row.get("held_out", False)) in ("True", "true", "1", "1.0")})
    return StudyTable(name, tuple(rows))


def from_results(plan: Plan, results: Sequence[CellResult]) -> StudyTable:
    """The table of a plan's finished main cells."""
    usable = [r for r in as_planned(plan, results) if r.cell.kind == "main" and is_usable(r)]
    rows = tuple(
        {
            "name": r.cell.name,
            "family": r.cell.family,
            "size": r.cell.size,
            "budget": r.cell.budget,
            "seed": r.cell.seed,
            "n": float(r.cell.parameters),
            "d": float(r.cell.tokens),
            "u": r.cell.tokens / max(1.0, r.cell.epochs or 1.0),
            "flops": r.cell.flops,
            "loss": r.loss,
            "held_out": r.cell.held_out,
            **r.metrics,
        }
        for r in usable
    )
    return StudyTable(plan.study.name, rows, plan.study.evaluation.loss)


def _law(law: Law | str) -> Law:
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        raise UserError(f"no law is called {law!r}: {', '.join(LAWS)}, or a Law of your own")
    return LAWS[law]


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _csv_text(value: Any) -> str:
    text = repr(value) if isinstance(value, float) else str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text
