"""The figures of a study, in the project's style: from records to PNG files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ....evals.figures.style import BASELINE, PALETTE, figure, human_bytes
from ..plan import Plan, budget_names
from ..results import CellResult
from ..statistics.laws import CHINCHILLA
from ..statistics.optimum import frontier
from .measured import costs_of, is_usable
from .records import StudyFit

MARKERS = "osD^vP*X"


def draw_all(folder: Path, plan: Plan, results: Sequence[CellResult], fit: StudyFit) -> dict[str, Path]:
    """Draw every figure that the study has data for; returns their paths by name."""
    main = [result for result in results if result.cell.kind == "main" and is_usable(result)]
    laws = any(law.E for law in fit.laws)
    has_recall = any(result.recall for result in main)
    figures: dict[str, tuple[bool, Callable[..., None]]] = {
        "loss_against_compute": (bool(main), _loss_against_compute),
        "arms": (bool(main), _arms),
        "isoflop": (bool(fit.isoflops) or laws, _isoflop),
        "residuals": (laws, _residuals),
        "extrapolation": (bool(fit.predictions), _extrapolation),
        "recall_against_tokens": (has_recall, _recall_against_tokens),
        "recall_against_state": (has_recall, _recall_against_state),
        "recall_against_parameters": (has_recall, _recall_against_parameters),
        "throughput": (bool(main), _throughput),
    }
    drawn = {}
    for name, (has_data, draw) in figures.items():
        if has_data:
            drawn[name] = folder / f"{name}.png"
            draw(drawn[name], plan, main, fit)
    return drawn


def _loss_against_compute(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    """Draw every cell, and the fitted frontier of each family over its sizes."""
    with figure(path, "Loss against training compute", "training FLOPs", _loss_name(fit)) as axes:
        for color, family in _families(plan):
            cells = [r for r in main if r.cell.family == family]
            for held_out in (False, True):
                group = [r for r in cells if r.cell.held_out == held_out]
                face = "none" if held_out else color
                axes.scatter(
                    [r.cell.flops for r in group], [r.loss for r in group], 22, facecolor=face, edgecolor=color
                )
            fitted = _fitted_numbers(fit, family)
            if fitted is not None and cells:
                flops = np.geomspace(min(r.cell.flops for r in cells), max(r.cell.flops for r in cells), 60)
                n = np.geomspace(min(r.cell.parameters for r in cells), max(r.cell.parameters for r in cells), 80)
                most = max(r.cell.tokens for r in cells)
                lowest = frontier(CHINCHILLA, fitted, flops, costs_of(cells), n, most_tokens=most)
                axes.plot(flops, lowest, color=color)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_loss_axis(axes)
        marks = [Line2D([], [], color="0.3", label="fitted frontier")]
        marks += [Line2D([], [], marker="o", color="0.3", linestyle="", markerfacecolor="none", label="held out")]
        axes.legend(handles=[*_family_handles(plan), *marks])


def _arms(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    """Draw loss against parameters, a line for each family and budget: the larger the budget, the darker."""
    budgets = budget_names(plan.study)
    with figure(path, "Arms side by side", "parameters without embeddings", _loss_name(fit)) as axes:
        for color, family in _families(plan):
            for i, budget in enumerate(budgets):
                cells = [r for r in main if (r.cell.family, r.cell.budget) == (family, budget)]
                if not cells:
                    continue
                sizes = sorted({r.cell.parameters for r in cells})
                mean = [np.mean([r.loss for r in cells if r.cell.parameters == size]) for size in sizes]
                shade = 0.35 + 0.65 * (i + 1) / len(budgets)
                axes.plot(sizes, mean, color=color, alpha=shade, marker=MARKERS[i % len(MARKERS)], markersize=5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_loss_axis(axes)
        marks = [
            Line2D([], [], color="0.3", marker=MARKERS[i % len(MARKERS)], label=budget, linestyle="")
            for i, budget in enumerate(budgets)
        ]
        axes.legend(handles=[*_family_handles(plan), *marks], loc="center left", bbox_to_anchor=(1, 0.5))


def _isoflop(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    """Draw parabolas through the cells of equal cost; without such cells, slices of the laws at costs within the data."""
    measured = bool(fit.isoflops)
    title = "IsoFLOP curves" if measured else "IsoFLOP slices of the fitted laws"
    with figure(path, title, "parameters without embeddings", _loss_name(fit)) as axes:
        for color, family in _families(plan):
            cells = [r for r in main if r.cell.family == family]
            if not cells:
                continue
            n = np.geomspace(min(r.cell.parameters for r in cells), max(r.cell.parameters for r in cells), 80)
            for iso in (iso for iso in fit.isoflops if iso.family == family):
                some = [r for r in cells if r.cell.budget == iso.budget]
                axes.scatter([r.cell.parameters for r in some], [r.loss for r in some], 18, color=color)
                bowl = np.exp(np.polynomial.polynomial.polyval(np.log(n / iso.centre), iso.coefficients))
                axes.plot(n, bowl, color=color, linewidth=1.2)
                if iso.best_parameters and iso.best_loss is not None:
                    axes.plot(iso.best_parameters, iso.best_loss, marker="*", color=color, markersize=11)
            fitted = _fitted_numbers(fit, family)
            if not measured and fitted is not None and cells:
                low, high = (f(r.cell.flops for r in cells) for f in (min, max))
                for flops in np.geomspace(low * 3, high, 4):
                    tokens = flops / costs_of(cells).at(n)
                    axes.plot(n, CHINCHILLA.predict(fitted, {"n": n, "d": tokens}), color=color)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_loss_axis(axes)
        axes.legend(handles=_family_handles(plan))


def _residuals(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    by_name = {r.cell.name: r for r in main}
    with figure(path, "Residuals of the loss laws", "training FLOPs", "measured / fitted - 1") as axes:
        axes.axhline(0, color=BASELINE, linestyle="--", linewidth=1)
        for (color, family), law in zip(_families(plan), fit.laws, strict=True):
            assert law.family == family
            x = [by_name[residual.cell].cell.flops for residual in law.residuals]
            axes.scatter(x, [np.expm1(residual.residual) for residual in law.residuals], 24, color=color)
        axes.set_xscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.1%}")
        axes.legend(handles=_family_handles(plan))


def _extrapolation(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    """Draw the errors of held-out cells' predictions, relative to the measured loss: with interval, by one budget, naive."""
    colors = {family: color for color, family in _families(plan)}
    with figure(path, "Held-out cells: predicted against measured", "error of the prediction", "") as axes:
        axes.axvline(0, color=BASELINE, linestyle="--", linewidth=1)
        for y, prediction in enumerate(reversed(fit.predictions)):
            bounds = np.array(
                [
                    [prediction.predicted.value - prediction.predicted.low],
                    [prediction.predicted.high - prediction.predicted.value],
                ]
            )
            axes.errorbar(
                prediction.error,
                y,
                xerr=np.maximum(bounds, 0) / prediction.measured,
                color=colors[prediction.family],
                marker="o",
                capsize=3,
            )
            for marker, error in (("+", prediction.one_budget_error), ("x", prediction.naive_error)):
                if error is not None:
                    axes.plot(error, y, marker=marker, color="0.3")
        axes.set_yticks(
            range(len(fit.predictions)), [prediction.cell for prediction in reversed(fit.predictions)], fontsize=8
        )
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}%")
        guesses = {"+": "law of its budget alone", "x": "same as the next smaller size"}
        marks = [Line2D([], [], marker=m, color="0.3", linestyle="", label=text) for m, text in guesses.items()]
        axes.legend(handles=[*_family_handles(plan), *marks], loc="center left", bbox_to_anchor=(1, 0.5))


def _recall_against_tokens(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    """Draw recall against training tokens, a line for each family and size: the larger the model, the darker."""
    sizes = list(plan.study.sizes)
    with figure(path, "Recall against training", "training tokens", "accuracy, mean of all tasks") as axes:
        for color, family in _families(plan):
            for i, size in enumerate(sizes):
                cells = [r for r in main if (r.cell.family, r.cell.size) == (family, size) and r.recall]
                tokens = sorted({r.cell.tokens for r in cells})
                mean = [np.mean([r.accuracy for r in cells if r.cell.tokens == count]) for count in tokens]
                shade = 0.35 + 0.65 * (i + 1) / len(sizes)
                axes.plot(tokens, mean, color=color, alpha=shade, marker=MARKERS[i % len(MARKERS)], markersize=5)
        axes.set_xscale("log")
        axes.set_xticks(sorted({float(f"{r.cell.tokens:.1g}") for r in main}))
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:.3g}M")
        marks = [
            Line2D([], [], color="0.3", marker=MARKERS[i % len(MARKERS)], label=size, linestyle="")
            for i, size in enumerate(sizes)
        ]
        _accuracy_axis(axes, plan, main, marks)


def _recall_against_state(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    name = f"state of a sequence of {plan.study.fit.state_context:,} tokens"
    _recall(path, plan, main, name, lambda r: r.cell.state_bytes, human_bytes, base=2)


def _recall_against_parameters(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    _recall(path, plan, main, "parameters without embeddings", lambda r: r.cell.parameters, lambda v: f"{v / 1e6:.3g}M")


def _recall(
    path: Path,
    plan: Plan,
    main: Sequence[CellResult],
    x_name: str,
    x: Callable[[CellResult], float],
    text: Callable[[float], str],
    base: int = 10,
) -> None:
    """Draw accuracy against a quantity `x` of a cell's model."""
    budgets = budget_names(plan.study)
    with figure(path, f"Recall against {x_name}", x_name, "accuracy, mean of all tasks") as axes:
        for color, family in _families(plan):
            cells = [r for r in main if r.cell.family == family and r.recall]
            area = [60 * (1 + budgets.index(r.cell.budget)) / len(budgets) for r in cells]
            axes.scatter([x(r) for r in cells], [r.accuracy for r in cells], area, color=color, alpha=0.8)
        axes.set_xscale("log", base=base)
        axes.xaxis.set_major_formatter(lambda value, _: text(value))
        _accuracy_axis(axes, plan, main, [])


def _accuracy_axis(axes: Axes, plan: Plan, main: Sequence[CellResult], marks: list[Line2D]) -> None:
    """Set up the axis of accuracy from 0 to 1, with the line of chance and the legend."""
    average = float(np.mean([row.chance for r in main for row in r.recall]))
    axes.axhline(average, color=BASELINE, linestyle="--", linewidth=1)
    axes.set_ylim(-0.02, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    chance = Line2D([], [], color=BASELINE, linestyle="--", label="chance")
    axes.legend(handles=[*_family_handles(plan), *marks, chance], loc="center left", bbox_to_anchor=(1, 0.5))


def _throughput(path: Path, plan: Plan, main: Sequence[CellResult], fit: StudyFit) -> None:
    with figure(path, "Training speed of one cell", "parameters without embeddings", "tokens / s") as axes:
        for color, family in _families(plan):
            cells = [r for r in main if r.cell.family == family]
            axes.scatter([r.cell.parameters for r in cells], [r.tokens_per_second for r in cells], 24, color=color)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(handles=_family_handles(plan))


def _families(plan: Plan) -> list[tuple[str, str]]:
    return list(zip(PALETTE, plan.study.families, strict=False))


def _family_handles(plan: Plan) -> list[Line2D]:
    return [Line2D([], [], color=color, marker="o", label=family) for color, family in _families(plan)]


def _fitted_numbers(fit: StudyFit, family: str) -> np.ndarray | None:
    """The fitted numbers of a family's law, or None."""
    law = next(law for law in fit.laws if law.family == family)
    values = {name: getattr(law, name) for name in CHINCHILLA.names}
    return None if law.E is None else CHINCHILLA.fitted({name: value.value for name, value in values.items()})


def _loss_name(fit: StudyFit) -> str:
    return fit.loss.rpartition("/")[2].replace("_", " ") + " (held-out)"


def _plain_loss_axis(axes: Axes) -> None:
    """Label the ticks of a short logarithmic axis with plain numbers."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")
