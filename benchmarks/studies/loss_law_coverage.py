"""Coverage of the loss law's intervals, on losses from published constants with noise.

    python -m benchmarks.studies.loss_law_coverage docs/figures/loss_law_coverage.png

Constants: Besiroglu et al. 2024 (arXiv 2404.10102). 48 cells (8 sizes, 6 budgets) and 12 cells (4 sizes, 3 budgets), 0.5%
noise, 100 replications of 500 resamples.
"""

import sys
from pathlib import Path

import numpy as np

from echo_lm.evals.figures.style import BASELINE, PALETTE, figure
from echo_lm.orchestration.studies.analysis.loss_law import fit_loss, interval

E, A, B, ALPHA, BETA = 1.82, 482.0, 2085.0, 0.348, 0.366
DESIGNS = {
    "48 cells": (np.geomspace(44e6, 16e9, 8), np.geomspace(1e9, 500e9, 6)),
    "12 cells": (np.geomspace(1e6, 25e6, 4), np.geomspace(10e6, 90e6, 3)),
}


def intervals(n: np.ndarray, d: np.ndarray, delta: float, replications: int = 100) -> np.ndarray:
    """Intervals of replicated fits, `[replications, 2, 2]`: low and high of alpha and beta."""
    loss = E + A / n**ALPHA + B / d**BETA
    bounds = []
    for replication in range(replications):
        noise = 0.005 * np.random.default_rng([1, replication]).standard_normal(len(n))
        fit = fit_loss(n, d, loss * np.exp(noise), delta=delta, bootstrap=500, seed=replication)
        bounds.append([interval(fit, fit.resampled[:, 3]), interval(fit, fit.resampled[:, 4])])
    return np.array(bounds)


def main(path: Path) -> None:
    for name, axes_values in DESIGNS.items():
        n, d = (grid.ravel() for grid in np.meshgrid(*axes_values))
        bounds = intervals(n, d, delta=1e-2)
        low, high = bounds[..., 0], bounds[..., 1]
        covered = ((low <= (ALPHA, BETA)) & (high >= (ALPHA, BETA))).sum(axis=0)
        print(f"{name}: of {len(bounds)} intervals {covered[0]} hold alpha, {covered[1]} beta")
        if name == "48 cells":
            with figure(
                path, "95% intervals of alpha, 100 replications", "replication, by its interval's middle", "alpha"
            ) as axes:
                some = bounds[:, 0][np.argsort(bounds[:, 0].mean(axis=1))]
                for i, (low, high) in enumerate(some):
                    axes.vlines(i, low, high, color=PALETTE[0] if low <= ALPHA <= high else PALETTE[3])
                axes.axhline(ALPHA, color=BASELINE, linestyle="--", label=f"published, {ALPHA}")
                axes.legend()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
