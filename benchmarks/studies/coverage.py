"""Coverage of the intervals of scaling studies, on losses from published constants with noise.

    python -m benchmarks.studies.coverage benchmarks/results/study_coverage_DATE.json [--replications 200] [--only TEXT]

Constants: Besiroglu et al. 2024 (arXiv 2404.10102), table 1. Each replication draws noise, fits as `echo-lm study fit` does and
asks whether the intervals hold the truth. Where a fit prints a warning about a quantity, that replication counts as warned: the
aim (92 to 98% of the 95% intervals, 75 to 86% of the 80% ones) is for the others. A row of 200 has a standard error of 1.5% at 95%
and 2.8% at 80%.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from echo_lm.orchestration.studies.results import RecallRow
from echo_lm.orchestration.studies.statistics.cells import average_seeds
from echo_lm.orchestration.studies.statistics.isoflop import best_size_interval, fit_parabola
from echo_lm.orchestration.studies.statistics.law_fit import ONE_LINE, UNEQUAL_NOISE, fit_law
from echo_lm.orchestration.studies.statistics.laws import CHINCHILLA
from echo_lm.orchestration.studies.statistics.outliers import find_outliers
from echo_lm.orchestration.studies.statistics.recall_law import fit_recall

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
LEVELS = (0.95, 0.8)
DELTA, BOOTSTRAP = 1e-2, 300

Design = tuple[np.ndarray, np.ndarray]


class Held(NamedTuple):
    """One quantity in one replication: whether its intervals of `LEVELS` hold the truth, and whether it was warned of."""

    quantity: str
    covered: tuple[bool, ...]
    width: float
    warned: bool


def true_loss(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]


def grid(sizes: np.ndarray, budgets: np.ndarray) -> Design:
    n, d = (values.ravel() for values in np.meshgrid(sizes, budgets))
    return n, d


def rays(sizes: np.ndarray, tokens_per_parameter: list[float]) -> Design:
    n, ratio = grid(sizes, np.array(tokens_per_parameter))
    return n, ratio * n


DESIGNS: dict[str, Design] = {
    "9 cells": grid(np.geomspace(1e6, 25e6, 3), np.geomspace(10e6, 90e6, 3)),
    "12 cells": grid(np.geomspace(1e6, 25e6, 4), np.geomspace(10e6, 90e6, 3)),
    "24 cells": grid(np.geomspace(1e6, 1e8, 6), np.geomspace(10e6, 1e9, 4)),
    "48 cells": grid(np.geomspace(44e6, 16e9, 8), np.geomspace(1e9, 500e9, 6)),
    "three rays, 15 cells": rays(np.geomspace(1e6, 1e8, 5), [5, 20, 80]),
    "one ray, 12 cells": rays(np.geomspace(1e6, 1e9, 12), [20]),
}


def loss_law(
    random: np.random.Generator, design: Design, noise: np.ndarray | float, outlier: float = 0.0
) -> Iterator[Held]:
    """Cells of one seed; `outlier`: what a random cell has more than the law, in log L."""
    n, d = design
    log_loss = np.log(true_loss(n, d)) + noise * random.standard_normal(len(n))
    log_loss[random.integers(len(n))] += outlier
    yield from _held(random, n, d, log_loss, float(np.mean(noise)))


def seeds(random: np.random.Generator, design: Design, misfit: float, noise: np.ndarray | float) -> Iterator[Held]:
    """Three seeds a cell, which share the cell's misfit."""
    n, d = (np.repeat(values, 3) for values in design)
    shared = np.repeat(misfit * random.standard_normal(len(design[0])), 3)
    each = np.repeat(np.broadcast_to(noise, len(design[0])), 3) * random.standard_normal(len(n))
    yield from _held(random, n, d, np.log(true_loss(n, d)) + shared + each, float(np.hypot(misfit, np.mean(noise))))


def _held(
    random: np.random.Generator, n: np.ndarray, d: np.ndarray, log_loss: np.ndarray, noise: float
) -> Iterator[Held]:
    cells = average_seeds({"n": n, "d": d}, np.exp(log_loss))
    cells = cells.keep(~find_outliers(CHINCHILLA, cells, delta=DELTA))
    seed = int(random.integers(2**31))
    fit = fit_law(CHINCHILLA, cells, delta=DELTA, bootstrap=BOOTSTRAP, seed=seed)
    warnings = fit.warnings()
    all_of_it = ONE_LINE in warnings or any(warning.startswith(UNEQUAL_NOISE) for warning in warnings)
    for name in ("E", "alpha", "beta"):
        bounds = [fit.interval(name, level) for level in LEVELS]
        warned = all_of_it or any(warning.startswith(f"{name} ") for warning in warnings)
        yield Held(name, tuple(low <= TRUTH[name] <= high for low, high in bounds), bounds[0][1] - bounds[0][0], warned)
    larger = {"n": np.array([2 * n.max()]), "d": np.array([d.max()])}
    new = float(true_loss(larger["n"], larger["d"])[0] * np.exp(noise * random.standard_normal()))
    bounds = [fit.prediction_interval(larger, seed=seed, level=level) for level in LEVELS]
    yield Held(
        "new run of 2 N",
        tuple(low <= new <= high for low, high in bounds),
        (bounds[0][1] - bounds[0][0]) / new,
        all_of_it,
    )


def isoflop(random: np.random.Generator, sizes: int, noise: float) -> Iterator[Held]:
    """Three costs; sizes from a quarter to four times the best one of the middle cost."""
    costs = np.array([1e17, 4e17, 1.6e18])
    parabolas, best = [], []
    for flops in costs:
        many = np.geomspace(1e6, 1e10, 4000)
        best.append(many[true_loss(many, flops / 6 / many).argmin()])
        n = np.geomspace(best[-1] / 4, best[-1] * 4, sizes) * np.exp(random.uniform(-0.3, 0.3))
        loss = true_loss(n, flops / 6 / n) * np.exp(noise * random.standard_normal(sizes))
        parabolas.append(fit_parabola(n, loss))
    intervals = [best_size_interval(parabolas[1], [parabolas[0], parabolas[2]], level=level) for level in LEVELS]
    warned = intervals[0] is None
    covered = tuple(interval is None or interval[0] <= best[1] <= interval[1] for interval in intervals)
    width = np.inf if intervals[0] is None else np.log(intervals[0][1] / intervals[0][0])
    yield Held("log best size", covered, float(width), warned)


def recall(random: np.random.Generator, models: int, scatter: float) -> Iterator[Held]:
    """Models of different states, six rows each, which share the model's difficulty."""
    truth = {"state_bytes": 0.8, "pairs": 1.5, "length": 0.5}
    rows, labels = [], []
    for model, state in enumerate(np.geomspace(2**14, 2**19, models)):
        own = np.exp(scatter * random.standard_normal())
        for pairs in (2, 8, 32):
            for length in (64, 256):
                difficulty = own * 40 * pairs**1.5 * length**0.5 / state**0.8
                accuracy = 1 / 32 + 31 / 32 / (1 + difficulty)
                rows.append(
                    RecallRow(
                        task="mqar",
                        label="",
                        pairs=pairs,
                        length=length,
                        queries=256,
                        correct=int(random.binomial(256, accuracy)),
                        chance=1 / 32,
                        state_bytes=int(state),
                    )
                )
                labels.append(model)
    fit = fit_recall(rows, labels)
    for name, value in truth.items():
        bounds = [fit.interval(name, level) for level in LEVELS]
        yield Held(
            f"exponent of {name}",
            tuple(low <= value <= high for low, high in bounds),
            bounds[0][1] - bounds[0][0],
            bool(fit.warning()),
        )


def rows() -> dict[str, Callable[[np.random.Generator], Iterator[Held]]]:
    """Every row of the table by name."""
    table: dict[str, Callable[[np.random.Generator], Iterator[Held]]] = {}
    for name, design in DESIGNS.items():
        for noise in (0.005, 0.02):
            table[f"{name}, noise {noise:.1%}"] = partial(loss_law, design=design, noise=noise)
    twelve = DESIGNS["12 cells"]
    falling = 0.015 * (twelve[1] / twelve[1].min()) ** -0.6  # 1.5% at 10M tokens, 0.4% at 90M
    table["12 cells x 3 seeds, misfit 1.0% shared, seeds 0.5%"] = partial(
        seeds, design=twelve, misfit=0.01, noise=0.005
    )
    table["12 cells x 3 seeds, noise 1.5% to 0.4%"] = partial(seeds, design=twelve, misfit=0.0, noise=falling)
    table["12 cells, one +10%, noise 0.5%"] = partial(loss_law, design=twelve, noise=0.005, outlier=np.log(1.1))
    table["24 cells, one +10%, noise 0.5%"] = partial(
        loss_law, design=DESIGNS["24 cells"], noise=0.005, outlier=np.log(1.1)
    )
    for sizes in (4, 5, 7):
        table[f"IsoFLOP, {sizes} sizes x 3 costs, noise 0.5%"] = partial(isoflop, sizes=sizes, noise=0.005)
    for models in (5, 12):
        table[f"recall, {models} models, scatter 0.5"] = partial(recall, models=models, scatter=0.5)
    return table


def replicate(name: str, replication: int) -> list[Held]:
    """One replication of a row; the same on every machine."""
    return list(rows()[name](np.random.default_rng([20241130, replication])))


def coverage(name: str, replications: int, pool) -> list[dict[str, object]]:
    """The row's quantities: share of warned replications, and coverage of the others and of all."""
    found = pool.starmap(replicate, [(name, k) for k in range(replications)], chunksize=1)
    result = []
    for held in zip(*found, strict=True):
        covered, warned = np.array([h.covered for h in held]), np.array([h.warned for h in held])
        calm = covered[~warned]
        result.append(
            {
                "row": name,
                "quantity": held[0].quantity,
                "replications": replications,
                "warned": float(warned.mean()),
                "covered": [float(x) for x in calm.mean(axis=0)] if len(calm) else [],
                "covered_all": [float(x) for x in covered.mean(axis=0)],
                "median_width": float(np.median([h.width for h in held])),
            }
        )
    return result


def markdown(results: list[dict]) -> str:
    lines = ["| cells | quantity | warned | of 95% | of 80% | of 95%, warned too | width |", "|" + " --- |" * 7]
    for r in results:
        some = [f"{x:.1%}" for x in r["covered"]] or ["-", "-"]
        width = f"{r['median_width']:.3g}"
        lines.append(
            f"| {r['row']} | {r['quantity']} | {r['warned']:.0%} | {some[0]} | {some[1]} | {r['covered_all'][0]:.1%} | {width} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--replications", type=int, default=200)
    parser.add_argument("--only", default="", help="rows whose names contain this text; several with | between them")
    arguments = parser.parse_args()
    results: list[dict] = []
    start = time.time()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for name in rows():
            if any(text in name for text in arguments.only.split("|")):
                results += coverage(name, arguments.replications, pool)
                content = {"levels": LEVELS, "delta": DELTA, "bootstrap": BOOTSTRAP, "truth": TRUTH, "rows": results}
                arguments.output.write_text(
                    json.dumps(content, indent=1) + "\n"
                )  # after every row: the table takes an hour
                print(f"{time.time() - start:.0f} s: {name}", flush=True)
    print(markdown(results))


if __name__ == "__main__":
    main()
