"""The report of a study, `report.md` and `report.html` with figures; the answer stands first, then the evidence."""

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from ....evals.markdown import to_html
from ....models.common.files import write_text
from ..config import StudyConfig
from ..learning_rate import LearningRateRule
from ..plan import Plan, budget_names
from ..results import CellResult
from . import sections
from .measured import as_planned
from .plots import draw_all
from .records import Comparison, StudyFit


def write_report(
    folder: Path,
    plan: Plan,
    results: Sequence[CellResult],
    fit: StudyFit,
    rule: LearningRateRule | None,
    failed: dict[str, str],
    left_out: Container[str] = (),
) -> Path:
    """Write the report of a study, finished or not, and return the path of `report.md`.

    Args:
        rule: of the learning rate; None before a sweep is over.
        failed: last error of the cells that failed for good.
        left_out: names of the cells that the study has no GPU-hours for.
    """
    results = as_planned(plan, results)
    drawn = draw_all(folder / "figures", plan, results, fit)
    parts = [
        f"# Study {plan.study.name}\n\n{plan.study.question}",
        "\n".join(answer(plan.study, results, fit)),
        sections.missing(plan, fit, failed, left_out),
        sections.figures(drawn, "loss_against_compute", "arms"),
        sections.laws(fit),
        sections.figures(drawn, "residuals", "isoflop"),
        sections.isoflops(fit),
        sections.optima(fit),
        sections.other_laws(fit),
        sections.extrapolation(fit, drawn),
        sections.recall(fit, drawn),
        sections.cells(plan, results),
        sections.figures(drawn, "throughput"),
        sections.rules(plan, rule),
        sections.provenance(plan, results),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    report = folder / "report.md"
    write_text(report, text)
    write_text(folder / "report.html", to_html(text, folder, f"Study {plan.study.name}"))
    return report


def answer(study: StudyConfig, results: Sequence[CellResult], fit: StudyFit) -> list[str]:
    """The answer in three sentences: which family scales better in loss, in recall, and with what certainty."""
    return [_loss_sentence(study, fit), _recall_sentence(study, results), _certainty_sentence(fit)]


def _loss_sentence(study: StudyConfig, fit: StudyFit) -> str:
    name = fit.loss.rpartition("/")[2].replace("_", " ")
    if not fit.comparisons:
        fitted = [law.family for law in fit.laws if law.E]
        reason = (
            f"only {fitted[0]} has" if len(fitted) == 1 else f"{len(fitted)} of {len(study.families)} families have"
        )
        return f"**Loss**: families cannot be compared by their laws, {reason} one (see below)."
    parts = "; ".join(_compared(comparison) for comparison in fit.comparisons)
    return f"**Loss** ({name}, the best over sizes by the fitted laws, at the largest cost that both reached): {parts}."


def _compared(comparison: Comparison) -> str:
    first, second, ratio, cost = comparison.first, comparison.second, comparison.ratio, f"{comparison.flops:.2g} FLOPs"
    percent, low, high = (f"{100 * (value - 1):+.1f}" for value in (ratio.value, ratio.low, ratio.high))
    interval = f"{percent}%, 95% interval {low} to {high}%"
    if ratio.low <= 1 <= ratio.high:
        return f"{first} and {second} are not told apart at {cost} ({interval})"
    better, worse = (first, second) if ratio.value < 1 else (second, first)
    return f"{better} is lower than {worse} at {cost} ({first} against {second}: {interval})"


def _recall_sentence(study: StudyConfig, results: Sequence[CellResult]) -> str:
    measured = [r for r in results if r.cell.kind == "main" and r.recall]
    if not measured:
        return "**Recall**: not measured in this study."
    budget = budget_names(study)[-1]
    at_largest_budget = [r for r in measured if r.cell.budget == budget]
    families_by_size = {size: {r.cell.family for r in at_largest_budget if r.cell.size == size} for size in study.sizes}
    if not any(families_by_size.values()):
        return f"**Recall**: no cell with {budget} is finished."
    fullest = max(len(families) for families in families_by_size.values())
    size = [size for size, families in families_by_size.items() if len(families) == fullest][-1]
    parts = []
    for family in study.families:
        cells = [r for r in at_largest_budget if (r.cell.family, r.cell.size) == (family, size)]
        if cells:
            recalled = np.mean([r.accuracy for r in cells])
            parts.append(f"{family} {recalled:.1%} with {cells[0].cell.state_bytes / 2**20:.2f} MiB of state")
        else:
            parts.append(f"{family} is not finished")
    chance = np.mean([row.chance for r in at_largest_budget for row in r.recall])
    return (
        f"**Recall** (mean of the tasks, size {size}, trained on {budget}; state of a sequence of "
        f"{study.fit.state_context:,} tokens): {', '.join(parts)}; chance is {chance:.1%}."
    )


def _certainty_sentence(fit: StudyFit) -> str:
    if not fit.predictions and fit.held_out_sizes:
        return (
            f"**How sure**: size {', '.join(fit.held_out_sizes)} was held out, and there is no law (see below) or no finished cell "
            "to compare it with."
        )
    if not fit.predictions:
        return "**How sure**: nothing was held out, so nothing was predicted; take the laws as descriptions."
    errors = np.abs([prediction.error for prediction in fit.predictions])
    alternatives = [
        ("laws through the cells of one budget are", [prediction.one_budget_error for prediction in fit.predictions]),
        ('"same as the next smaller size" is', [prediction.naive_error for prediction in fit.predictions]),
    ]
    inside = sum(p.predicted.low <= p.measured <= p.predicted.high for p in fit.predictions)
    comparisons = ""
    for name, alternative_errors in alternatives:
        relative_errors = np.abs([error for error in alternative_errors if error is not None])
        if len(relative_errors):
            comparisons += f"; {name} off by {relative_errors.mean():.2%} and {relative_errors.max():.2%}"
    doubtful = [law.family for law in fit.laws if law.warnings]
    doubt = f"; **warnings** about the laws of {', '.join(doubtful)} stand below" if doubtful else ""
    return (
        f"**How sure**: the laws predict the {len(errors)} cells that they never saw with a mean error of {errors.mean():.2%}, "
        f"{errors.max():.2%} at most{comparisons}; {inside} of {len(errors)} lie in their 95% prediction interval{doubt}."
    )
