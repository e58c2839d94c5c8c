"""The data that a law is fitted to: cells averaged over their seeds, with the variance between seeds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Cells:
    """Cells with distinct values of their columns, each the mean of its seeds.

    Attributes:
        columns: `{name: [cells]}`, such as n and d.
        log_loss: `[cells]`, mean of log L over the seeds.
        seeds: `[cells]`, how many there are.
        seed_variance: of log L between seeds of one cell, pooled; 0 if every cell has one seed.
        seed_freedom: its degrees of freedom.
        equal_noise: p-value of Bartlett's test (1937) that the seeds of all cells differ alike; None if fewer than two cells have
            seeds that differ.
        rows: of each cell, the indices of its rows in the table that was given.
    """

    columns: Mapping[str, np.ndarray]
    log_loss: np.ndarray
    seeds: np.ndarray
    seed_variance: float
    seed_freedom: int
    rows: tuple[tuple[int, ...], ...]
    equal_noise: float | None = None

    def __len__(self) -> int:
        return len(self.log_loss)

    def keep(self, kept: np.ndarray) -> "Cells":
        """The cells where `kept` (bool, `[cells]`) is true."""
        return Cells(
            {name: values[kept] for name, values in self.columns.items()},
            self.log_loss[kept],
            self.seeds[kept],
            self.seed_variance,
            self.seed_freedom,
            tuple(rows for rows, keep in zip(self.rows, kept, strict=True) if keep),
            self.equal_noise,
        )


def average_seeds(columns: Mapping[str, ArrayLike], loss: ArrayLike) -> Cells:
    """Cells from a table of runs; runs that agree in every column are seeds of one cell.

    A law's misfit is the same for all seeds of a cell, so they are one observation and not several.

    Raises:
        ValueError: a loss or a column that is not a positive finite number.
    """
    table = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    losses = np.asarray(loss, dtype=float)
    for name, values in (("loss", losses), *((k, v) for k, v in table.items() if k != "family")):
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(wrong):
            raise ValueError(f"{name} of row {wrong[0]} is {values[wrong[0]]}: positive finite numbers have a law")
    groups: dict[tuple[float, ...], list[int]] = {}
    for row, key in enumerate(zip(*table.values(), strict=True)):
        groups.setdefault(key, []).append(row)
    rows = tuple(map(tuple, groups.values()))
    log_loss = np.log(losses)
    within = sum(float(((log_loss[list(r)] - log_loss[list(r)].mean()) ** 2).sum()) for r in rows)
    freedom = len(losses) - len(rows)
    several = [log_loss[list(r)] for r in rows if len(r) > 1 and np.ptp(log_loss[list(r)]) > 0]
    return Cells(
        {name: values[[r[0] for r in rows]] for name, values in table.items()},
        np.array([log_loss[list(r)].mean() for r in rows]),
        np.array([len(r) for r in rows]),
        within / freedom if freedom else 0.0,
        freedom,
        rows,
        float(stats.bartlett(*several).pvalue) if len(several) > 1 else None,
    )
