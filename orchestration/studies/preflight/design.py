"""Analysis of a study's design before it is run: cells left for each law, parameters that are not identified, expected intervals.

The expected intervals come from simulation: losses of a published law with noise at the planned cells, fitted as the study will be.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import StudyConfig
from ..plan import Plan, StudyCell, budget_names
from ..statistics.cells import Cells, average_seeds
from ..statistics.isoflop import best_size_interval, fit_parabola
from ..statistics.law_fit import ONE_LINE, check_design, fit_law, on_one_line
from ..statistics.laws import CHINCHILLA

# Besiroglu et al. 2024 (arXiv 2404.10102), table 1: a law to simulate with. Another one gives intervals of a similar size.
REFERENCE = CHINCHILLA.fitted({"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658})
SIMULATIONS, RESAMPLES = 20, 100
EXPONENTS = ("alpha", "beta")
TOO_WIDE = 0.5  # of an exponent's expected 95% interval: larger than the exponents that are found


@dataclass(frozen=True)
class Design:
    """The design of some families: the cells that each one's loss law is fitted to, and how well they determine it.

    Attributes:
        cells, sizes, budgets: that are left after hold-out; `seeds` a cell.
        rank: of the derivatives of log L by the law's five parameters, at the reference law; `condition`: their condition number,
            each column scaled to length 1.
        widths: expected width of the 95% interval of each exponent (median of the simulations), and of the size's exponent
            a = beta / (alpha + beta); `prediction`: of the loss of the first held-out cell, relative; None without any.
        best_size: expected ratio of the ends of an IsoFLOP interval; None where there are no FLOP budgets or no interval.
        problems: why there will be no law, or no exponents.
        add: cells that would narrow the intervals most, in words.
    """

    families: tuple[str, ...]
    cells: int
    sizes: int
    budgets: int
    seeds: int
    rank: int
    condition: float
    widths: dict[str, float]
    prediction: float | None
    best_size: float | None
    problems: tuple[str, ...]
    add: tuple[str, ...]


def designs(plan: Plan) -> list[Design]:
    """The designs of the families; those with the same sizes and budgets, whose parameters are matched, share one."""
    by_cells: dict[tuple[tuple[str, str], ...], Design] = {}
    for family in plan.study.families:
        main = [cell for cell in plan.of_kind("main") if cell.family == family]
        key = tuple((cell.size, cell.budget) for cell in main)
        if key in by_cells:
            by_cells[key] = replace(by_cells[key], families=(*by_cells[key].families, family))
        else:
            by_cells[key] = _design(plan.study, family, main)
    return list(by_cells.values())


def certain_problems(study: StudyConfig, main: Sequence[StudyCell]) -> list[str]:
    """Why the main cells of a family cannot give a law, or none in which alpha and beta are identified; needs no simulation."""
    table = _table([cell for cell in main if not cell.held_out])
    try:
        check_design(CHINCHILLA, table)
    except ValueError as error:
        held_out = f" (held out: {', '.join(study.held_out_sizes)})" if study.held_out_sizes else ""
        return [f"no loss law: {error}{held_out}"]
    return [ONE_LINE] if on_one_line(table.columns) else []


def _design(study: StudyConfig, family: str, main: list[StudyCell]) -> Design:
    left = [cell for cell in main if not cell.held_out]
    table = _table(left)
    jacobian = CHINCHILLA.log_loss(REFERENCE[None], table.columns)[1][0] if len(table) else np.zeros((1, 5))
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    singular = np.linalg.svd(scaled, compute_uv=False)
    problems, widths, prediction = certain_problems(study, main), {}, None
    if not any(problem.startswith("no loss law") for problem in problems):
        widths, prediction = _expected(study, table, next((cell for cell in main if cell.held_out), None))
        problems += [
            f"{name} will not be identified: expected 95% interval {width:.2g} wide"
            for name, width in widths.items()
            if name in EXPONENTS and width > TOO_WIDE
        ]
    return Design(
        families=(family,),
        cells=len(table),
        sizes=len({cell.size for cell in left}),
        budgets=len({cell.budget for cell in left}),
        seeds=len(study.seeds),
        rank=int((singular > 1e-6 * max(singular[0], 1e-300)).sum()),
        condition=float(singular[0] / max(singular[-1], 1e-300)) if len(singular) == 5 else float("inf"),
        widths=widths,
        prediction=prediction,
        best_size=_expected_best_size(study, left) if study.budgets.kind == "flops" else None,
        problems=tuple(problems),
        add=tuple(_worth_adding(left)) if problems or max(widths.values(), default=0) > TOO_WIDE / 2 else (),
    )


def _table(cells: Sequence[StudyCell]) -> Cells:
    """The planned cells as a table for the fit, one row for all seeds of a cell, with losses of the reference law."""
    columns = {"n": [float(cell.parameters) for cell in cells], "d": [float(cell.tokens) for cell in cells]}
    arrays = {name: np.array(values) for name, values in columns.items()}
    return average_seeds(columns, CHINCHILLA.predict(REFERENCE, arrays) if cells else [])


def _expected(study: StudyConfig, table: Cells, held: StudyCell | None) -> tuple[dict[str, float], float | None]:
    """Expected interval widths: medians over simulated studies, with noise between seeds as large as that of cells around the
    law."""
    random = np.random.default_rng(_seed(study))
    widths: dict[str, list[float]] = {name: [] for name in (*EXPONENTS, "a")}
    predictions = []
    for _ in range(SIMULATIONS):
        noise = study.fit.expected_noise / np.sqrt(len(study.seeds)) * random.standard_normal(len(table))
        simulated = Cells(table.columns, table.log_loss + noise, table.seeds, 0.0, 0, table.rows)
        seed = int(random.integers(2**31))
        fit = fit_law(CHINCHILLA, simulated, delta=study.fit.huber_delta, bootstrap=RESAMPLES, seed=seed)
        for name in EXPONENTS:
            widths[name].append(float(np.ptp(fit.interval(name))))
        alpha, beta = fit.resampled[:, 3], fit.resampled[:, 4]
        widths["a"].append(float(np.ptp(fit.interval_of(beta / np.maximum(alpha + beta, 1e-12)))))
        if held is not None:
            at = {"n": np.array([float(held.parameters)]), "d": np.array([float(held.tokens)])}
            interval = fit.prediction_interval(at, seed=seed)
            predictions.append(float(np.ptp(interval) / fit.predict(at)[0]))
    return {name: float(np.median(values)) for name, values in widths.items()}, (
        float(np.median(predictions)) if predictions else None
    )


def _expected_best_size(study: StudyConfig, cells: Sequence[StudyCell]) -> float | None:
    """Median ratio of the ends of the best size's interval, of all costs; None if most have no interval."""
    random = np.random.default_rng(_seed(study))
    groups = [[cell for cell in cells if cell.budget == budget] for budget in budget_names(study)]
    groups = [group for group in groups if len({cell.parameters for cell in group}) >= 3]
    ratios = []
    for _ in range(SIMULATIONS if groups else 0):
        parabolas = []
        for group in groups:
            n, d = (np.array([float(getattr(cell, name)) for cell in group]) for name in ("parameters", "tokens"))
            noise = np.exp(study.fit.expected_noise * random.standard_normal(len(group)))
            parabolas.append(fit_parabola(n, CHINCHILLA.predict(REFERENCE, {"n": n, "d": d}) * noise))
        for i, parabola in enumerate(parabolas):
            interval = best_size_interval(parabola, parabolas[:i] + parabolas[i + 1 :])
            ratios.append(np.inf if interval is None else interval[1] / interval[0])
    middle = float(np.median(ratios)) if ratios else np.inf
    return middle if np.isfinite(middle) else None


def _worth_adding(cells: Sequence[StudyCell], count: int = 2) -> list[str]:
    """The additional cells that lower the variance of alpha and beta most, chosen one by one with the linearised law
    (c-optimality).

    Candidates: every size of the study, half the smallest and twice the largest, with a third to three times the tokens of its
    cells and every number of tokens of the others.
    """
    if not cells:
        return []
    sizes = sorted({float(cell.parameters) for cell in cells})
    tokens = sorted({float(cell.tokens) for cell in cells})
    log_sizes = [sizes[0] / 2, *sizes, sizes[-1] * 2]
    log_tokens = [tokens[0] / 3, *tokens, tokens[-1] * 3]
    n, d = (grid.ravel() for grid in np.meshgrid(log_sizes, log_tokens))
    mine = np.array([(float(cell.parameters), float(cell.tokens)) for cell in cells])
    chosen, words = mine, []
    for _ in range(count):
        variances = [_exponent_variance(np.vstack([chosen, (size, number)])) for size, number in zip(n, d, strict=True)]
        best = int(np.argmin(variances))
        gain = 1 - np.sqrt(variances[best] / _exponent_variance(chosen))
        chosen = np.vstack([chosen, (n[best], d[best])])
        words.append(
            f"{n[best]:.2g} parameters with {d[best]:.2g} tokens (intervals of the exponents {gain:.0%} narrower)"
        )
    return words


def _exponent_variance(cells: np.ndarray) -> float:
    """Sum of the variances of alpha and beta for noise of variance 1, `cells` `[m, 2]` of N and D; a ridge keeps it finite."""
    jacobian = CHINCHILLA.log_loss(REFERENCE[None], {"n": cells[:, 0], "d": cells[:, 1]})[1][0]
    covariance = np.linalg.inv(jacobian.T @ jacobian + 1e-9 * np.eye(5))
    return float(covariance[3, 3] + covariance[4, 4])


def describe_designs(plan: Plan) -> list[str]:
    """The designs of a plan in lines of text."""
    study = plan.study
    lines = [line for design in designs(plan) for line in _describe(study, design)]
    repeated = max((cell.epochs or 0.0 for cell in plan.of_kind("main")), default=0.0)
    if repeated > 1:
        lines.append(
            f"up to {repeated:.1f} epochs: the law of N and D counts repeated tokens as new ones; the report also has the law for "
            "repeated data"
        )
    return lines


def plan_warnings(plan: Plan) -> list[str]:
    """Warnings, by family, of what the study's answer is certain to lack."""
    problems: dict[str, list[str]] = {}
    for family in plan.study.families:
        main = [cell for cell in plan.of_kind("main") if cell.family == family]
        for problem in certain_problems(plan.study, main):
            problems.setdefault(problem, []).append(family)
    return [f"{', '.join(families)}: {problem}" for problem, families in problems.items()]


def _describe(study: StudyConfig, design: Design) -> list[str]:
    seeds = f" x {design.seeds} seeds" if design.seeds > 1 else ""
    lines = [
        f"{', '.join(design.families)}: {design.cells} cells{seeds} for the loss law ({design.sizes} sizes, {design.budgets} "
        f"budgets), 5 parameters; design of rank {design.rank}, condition {design.condition:.3g}"
    ]
    if design.widths:
        widths = ", ".join(f"{name} {width:.2g}" for name, width in design.widths.items())
        held = f", held-out loss {design.prediction:.1%}" if design.prediction is not None else ""
        lines.append(
            f"  expected widths of 95% intervals at {study.fit.expected_noise:.2%} noise (fit.expected_noise): {widths}{held} "
            f"(a: N_opt ~ C^a; {SIMULATIONS} simulations)"
        )
    if study.budgets.kind == "flops":
        found = (
            f"ends {design.best_size:.2g} times apart"
            if design.best_size
            else "none: four sizes or more a cost have one"
        )
        lines.append(f"  expected interval of the best size at one cost: {found}")
    lines += [f"  WARNING: {problem}" for problem in design.problems]
    lines += [f"  worth adding: {cell}" for cell in design.add]
    return lines


def _seed(study: StudyConfig) -> int:
    return int.from_bytes(hashlib.sha256(f"{study.name}/design".encode()).digest()[:4], "big")
