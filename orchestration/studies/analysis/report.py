"""The report of a study, `report.md` and `report.html` with figures: the answer first, then the evidence."""

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt

from ....models.common.files import write_text
from ..config import StudyConfig
from ..learning_rate import LearningRateRule
from ..plan import Plan, budget_names
from ..results import CellResult
from .captions import CAPTIONS
from .fit import Comparison, Interval, StudyFit
from .plots import draw_all

STYLE = "body{font:16px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}"
STYLE += "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #ddd;padding:.2em .6em}"


def write_report(
    folder: Path,
    plan: Plan,
    results: Sequence[CellResult],
    fit: StudyFit,
    rule: LearningRateRule | None,
    failed: dict[str, str],
) -> Path:
    """Write the report of a study, finished or not, and return the path of `report.md`.

    Args:
        rule: of the learning rate; None before a sweep is over.
        failed: last error of the cells that failed for good.
    """
    drawn = draw_all(folder / "figures", plan, results, fit)
    sections = [
        f"# Study {plan.study.name}\n\n{plan.study.question}",
        "\n".join(answer(plan.study, results, fit)),
        _missing(plan, fit, failed),
        _figures(drawn, "loss_against_compute", "arms"),
        _laws(fit),
        _figures(drawn, "residuals", "isoflop"),
        _isoflops(fit),
        _extrapolation(fit, drawn),
        _recall(fit, drawn),
        _cells(plan, results),
        _figures(drawn, "throughput"),
        _rules(plan, rule),
        _provenance(plan, results),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    report = folder / "report.md"
    write_text(report, text)
    write_text(folder / "report.html", to_html(text, folder, f"Study {plan.study.name}"))
    return report


def answer(study: StudyConfig, results: Sequence[CellResult], fit: StudyFit) -> list[str]:
    """The answer in three sentences: which family scales better in loss, in recall, and with what certainty."""
    return [_loss_sentence(study, fit), _recall_sentence(study, results), _certainty_sentence(fit)]


def to_html(markdown: str, folder: Path, title: str) -> str:
    """Render a report as one HTML page with embedded figures."""
    body = MarkdownIt().enable("table").render(markdown)

    def embed(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="(figures/[^"]+\.png)"', embed, body)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}</body></html>\n'


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
    return (
        f"**How sure**: the laws predict the {len(errors)} cells that they never saw with a mean error of {errors.mean():.2%}, "
        f"{errors.max():.2%} at most{comparisons}; {inside} of {len(errors)} lie in their 95% prediction interval."
    )


def _missing(plan: Plan, fit: StudyFit, failed: dict[str, str]) -> str:
    if not fit.missing:
        return f"All {len(plan.cells)} cells are finished."
    lines = [f"**{len(fit.missing)} of {len(plan.cells)} cells are missing** and enter nothing below:"]
    lines += [f"- {name}: " + (f"failed: {failed[name]}" if name in failed else "not finished") for name in fit.missing]
    return "\n".join(lines)


def _laws(fit: StudyFit) -> str:
    rows = []
    for law in fit.laws:
        if law.E is None:
            rows.append((law.family, law.cells, law.note, "", "", "", "", ""))
        else:
            values = (law.E, law.alpha, law.beta, law.A, law.B)
            rows.append((law.family, law.cells, *map(_text, values), f"{law.scale:.2%}"))
    table = _table(("family", "cells", "E", "alpha", "beta", "A", "B", "noise"), rows)
    return (
        "## Loss laws\n\nL(N, D) = E + A / N^alpha + B / D^beta; N: parameters without embeddings, D: training tokens, L: "
        f"{fit.loss.rpartition('/')[2].replace('_', ' ')} on held-out text.\n\n{table}\n\n"
        f"Huber loss on log L (delta {fit.huber_delta:g}), many starts; 95% intervals from {fit.bootstrap:,} resamples of the "
        "residuals; noise: standard deviation of a cell around the law."
    )


def _isoflops(fit: StudyFit) -> str:
    if not fit.isoflops:
        return ""
    rows = [
        (
            iso.family,
            f"{iso.flops:.2e}",
            iso.sizes,
            _text(iso.best_parameters) if iso.best_parameters else iso.note,
            f"{iso.best_loss:.4f}" if iso.best_loss else "",
        )
        for iso in fit.isoflops
    ]
    return "## IsoFLOP\n\n" + _table(("family", "FLOPs", "sizes", "best size (parameters)", "loss there"), rows)


def _extrapolation(fit: StudyFit, drawn: dict[str, Path]) -> str:
    if not fit.predictions:
        return ""
    rows = [
        (
            prediction.cell,
            f"{prediction.measured:.4f}",
            f"{prediction.predicted.value:.4f} ({prediction.predicted.low:.4f} to {prediction.predicted.high:.4f})",
            f"**{prediction.error:+.2%}**",
            "-" if prediction.one_budget is None else f"{prediction.one_budget:.4f}",
            "-" if prediction.one_budget_error is None else f"{prediction.one_budget_error:+.2%}",
            "-" if prediction.naive is None else f"{prediction.naive:.4f}",
            "-" if prediction.naive_error is None else f"{prediction.naive_error:+.2%}",
        )
        for prediction in fit.predictions
    ]
    header = ("held-out cell", "measured", "predicted", "error", "law of its budget", "its error")
    header += ("same as next smaller size", "its error")
    sizes = ", ".join(fit.held_out_sizes)
    text = f"No cell of size {sizes} entered a fit. Law of its budget: E + A / N^alpha through the cells of the same budget."
    return f"## Extrapolation\n\n{text}\n\n{_table(header, rows)}\n\n" + _figures(drawn, "extrapolation")


def _recall(fit: StudyFit, drawn: dict[str, Path]) -> str:
    if not fit.recall:
        return ""
    names = ("state_bytes", "pairs", "length")
    rows = [
        (
            law.task,
            law.family,
            law.cells,
            *(_text(law.exponents[name]) if name in law.exponents else "-" for name in names),
            f"{law.rmse:.1%}" if law.rmse is not None else law.note,
        )
        for law in fit.recall
    ]
    header = ("task", "family", "cells", "s (state bytes)", "p (pairs)", "q (length)", "RMS error of accuracy")
    return (
        "## Recall\n\nAt the largest budget, share recalled above chance = 1 / (1 + c pairs^p length^q / state_bytes^s); "
        "-: did not vary.\n\n"
        f"{_table(header, rows)}\n\n"
        + _figures(drawn, "recall_against_tokens", "recall_against_state", "recall_against_parameters")
    )


def _cells(plan: Plan, results: Sequence[CellResult]) -> str:
    peak = plan.study.hardware.peak_tflops
    rows = [
        (
            r.cell.name,
            f"{r.cell.parameters:,}",
            f"{r.cell.tokens:,}",
            "-" if r.cell.epochs is None else f"{r.cell.epochs:.2f}",
            f"{r.cell.flops:.2e}",
            f"{r.cell.state_bytes:,}",
            f"{r.learning_rate:.2e}",
            f"{r.loss:.4f}",
            f"{r.tokens_per_second:,.0f}",
            f"{r.tflops * r.cell.per_device / peak:.1%}" if peak else "-",
            f"{r.seconds / 60:.1f}",
            r.starts,
        )
        for r in results
    ]
    header = (
        "cell",
        "parameters",
        "tokens",
        "epochs",
        "FLOPs",
        "state bytes",
        "learning rate",
        "loss",
        "tokens/s",
        "MFU",
    )
    context = plan.study.fit.state_context
    return (
        f"## Cells\n\nState: one sequence at {context:,} tokens of context. MFU counts the cells that share a device.\n\n"
        + _table((*header, "minutes", "starts"), rows)
    )


def _rules(plan: Plan, rule: LearningRateRule | None) -> str:
    batch = plan.study.batch
    lines = ["## Rules", ""]
    if rule is None:
        lines.append("- learning rate: its sweep is not finished")
    for family, r in rule.families.items() if rule else ():
        line = f"- learning rate of {family}: {r.value:.3g} (N / {r.at_parameters:.3g})^{r.exponent:.3g}"
        if r.best:
            best = ", ".join(f"{size}: {value:.3g}" for size, value in r.best.items())
            edge = f"; at the edge of the sweep: {', '.join(r.at_edge)}" if r.at_edge else ""
            line += f", fitted to a sweep (best {best}{edge})"
        lines.append(line)
    lines.append(
        f"- batch: {batch.value:,} tokens"
        + (f" (D / {batch.at_tokens:.3g})^{batch.exponent:g}" if batch.exponent else "")
        + f", rows of {plan.study.train.sequence_length:,}, whole powers of two"
    )
    return "\n".join(lines)


def _provenance(plan: Plan, results: Sequence[CellResult]) -> str:
    hours = sum(r.seconds for r in results) / 3600
    predicted = sum(r.cell.seconds for r in results) / 3600
    hardware = plan.study.hardware
    per_device = sum(r.seconds / r.cell.per_device for r in results) / 3600
    versions: dict[str, Any] = results[0].versions if results else {}
    rows = [
        ("hardware", "; ".join(dict.fromkeys(r.hardware for r in results))),
        ("commits", ", ".join(sorted({str(r.git_commit) for r in results}))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("FLOPs", f"{sum(r.cell.flops for r in results):.3g}"),
        ("tokens", f"{sum(r.cell.tokens for r in results):,}"),
        ("cell hours", f"{hours:.2f} ({predicted:.2f} predicted)"),
        ("device hours", f"{per_device:.2f}, cells that share a device counted by their share"),
    ]
    if hardware.cost_per_hour:
        rows.append(("cost", f"{per_device * hardware.cost_per_hour:.2f} at {hardware.cost_per_hour:g} a device hour"))
    return "## What was run on what\n\n" + _table(("", ""), rows)


def _figures(drawn: dict[str, Path], *names: str) -> str:
    available = [name for name in names if name in drawn]
    return "\n\n".join(f"![{CAPTIONS[name]}](figures/{name}.png)\n*{CAPTIONS[name]}*" for name in available)


def _text(interval: Interval) -> str:
    return f"{interval.value:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
