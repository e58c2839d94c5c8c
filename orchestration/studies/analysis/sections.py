"""The sections of a study's report below its answer, each Markdown text or empty."""

from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..learning_rate import LearningRateRule
from ..plan import Plan
from ..results import CellResult
from .captions import CAPTIONS
from .records import StudyFit


def missing(plan: Plan, fit: StudyFit, failed: dict[str, str], left_out: Container[str]) -> str:
    """The section on unfinished cells: they failed, did not fit into the GPU-hours, or were not run yet."""
    if not fit.missing:
        return f"All {len(plan.cells)} cells are finished."
    lines = [f"**{len(fit.missing)} of {len(plan.cells)} cells are missing** and enter nothing below:"]
    hours = f"left out, limits.gpu_hours={plan.study.limits.gpu_hours or 0:g} have no room for it"
    states = {name: f"failed: {failed[name]}" if name in failed else "not finished" for name in fit.missing}
    states |= {name: hours for name in fit.missing if name in left_out}
    lines += [f"- {name}: {state}" for name, state in states.items()]
    return "\n".join(lines)


def laws(fit: StudyFit) -> str:
    """The section on the loss laws, with their warnings and the cells that were left out of the fits."""
    rows = []
    for law in fit.laws:
        if law.E is None or law.scale is None:
            rows.append((law.family, law.cells, law.note, *[""] * 6))
        else:
            values = (law.E, law.alpha, law.beta, law.A, law.B, law.size_exponent)
            rows.append((law.family, law.cells, *map(str, values), f"{law.scale:.2%}"))
    table = _table(("family", "runs", "E", "alpha", "beta", "A", "B", "N_opt ~ C^", "noise"), rows)
    remarks = [f"- {name} has no positive finite loss: it diverged, and enters nothing" for name in fit.unusable]
    for law in fit.laws:
        remarks += [
            f"- **{name} is an outlier**: far from the law of {law.family} through the others, left out"
            for name in law.outliers
        ]
        remarks += [f"- **{law.family}**: {warning}" for warning in law.warnings]
        if law.lack_of_fit is not None and law.misfit is not None:
            remarks.append(
                f"- {law.family}: cells lie {law.misfit:.2%} from the law beyond what seeds differ (F-test of lack of fit: p = "
                f"{law.lack_of_fit:.2g})"
            )
    text = (
        "## Loss laws\n\nL(N, D) = E + A / N^alpha + B / D^beta; N: parameters without embeddings, D: all "
        "training tokens, recall rows "
        f"included, L: {fit.loss.rpartition('/')[2].replace('_', ' ')} on held-out text ({fit.loss}).\n\n{table}\n\n"
        f"Huber loss on log L (delta {fit.huber_delta:g}), many starts; seeds of a cell averaged; 95% "
        f"intervals from {fit.bootstrap:,} "
        "resamples of the cells' residuals, each fitted from several starts; noise: standard deviation of a "
        "run around the law; *: a "
        "bound of the fit, not an estimate."
    )
    return text + ("\n\n" + "\n".join(remarks) if remarks else "")


def isoflops(fit: StudyFit) -> str:
    """The section on the best size at each training cost, by IsoFLOP parabolas."""
    if not fit.isoflops:
        return ""
    rows = []
    for iso in fit.isoflops:
        if iso.best_parameters is None:
            best = iso.note
        elif iso.interval is None:
            best = f"{iso.best_parameters:.3g}; {iso.note}"
        else:
            best = f"{iso.best_parameters:.3g} ({iso.interval[0]:.3g} to {iso.interval[1]:.3g})"
        rows.append((iso.family, f"{iso.flops:.2e}", iso.sizes, best, f"{iso.best_loss:.4f}" if iso.best_loss else ""))
    table = _table(("family", "FLOPs", "sizes", "best size (parameters)", "loss there"), rows)
    return (
        f"## IsoFLOP\n\n{table}\n\nParabolas of log L in log N without held-out sizes; 95% intervals by "
        "Fieller's theorem and Student's t, "
        "the noise from all costs of a family."
    )


def optima(fit: StudyFit) -> str:
    """The section on the best size and tokens at several training costs, by the fitted laws."""
    if not fit.optima:
        return ""
    rows = [(o.family, f"{o.flops:.2e}", str(o.parameters), str(o.tokens)) for o in fit.optima]
    table = _table(("family", "FLOPs", "N_opt", "D_opt"), rows)
    return (
        f"## Best size and tokens by the laws\n\n{table}\n\nEach size with its own FLOPs a token; among the "
        "sizes that were fitted; *: the "
        "smallest or largest of them, so the best lies there or beyond, or more tokens than any of these cells had."
    )


def other_laws(fit: StudyFit) -> str:
    """The section on alternative laws: error of each on cells left out of its fit, common exponents, repeated data."""
    lines = []
    for family in dict.fromkeys(choice.family for choice in fit.choice):
        errors = [
            f"{choice.law} {choice.error:.2%}" if choice.error is not None else f"{choice.law}: {choice.note}"
            for choice in fit.choice
            if choice.family == family
        ]
        what = "error on sizes (and budgets, where three others are left) that were left out one by one"
        lines.append(f"- {family}, {what}: {', '.join(errors)}")
    if fit.joint is not None and fit.joint.alpha is not None and fit.joint.beta is not None:
        lines.append(
            f"- all families with exponents in common: alpha {fit.joint.alpha}, beta {fit.joint.beta}, noise "
            f"{fit.joint.scale:.2%}"
        )
    for law in fit.repeated:
        if law.R is None or law.beta is None:
            lines.append(f"- {law.family}, up to {law.epochs:.1f} epochs: {law.note}")
        else:
            lines.append(
                f"- {law.family}, up to {law.epochs:.1f} epochs: the law for repeated data (Muennighoff et al. 2023) "
                f"has R = {law.R} "
                f"repetitions and beta {law.beta}; the law above counts repeated tokens as new ones"
            )
    if not lines:
        return ""
    names = "chinchilla: as above; one-exponent: alpha = beta; no-floor: E = 0."
    return "## Other laws\n\n" + "\n".join(lines) + f"\n\n{names}"


def extrapolation(fit: StudyFit, drawn: dict[str, Path]) -> str:
    """The section on held-out cells: predicted and measured loss."""
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
    by_budget = "the parabola" if fit.isoflops else "E + A / N^alpha"
    text = (
        f"No cell of size {sizes} entered a loss law or a parabola. Law of its budget: {by_budget} through the other cells of the "
        "same budget."
    )
    return f"## Extrapolation\n\n{text}\n\n{_table(header, rows)}\n\n" + figures(drawn, "extrapolation")


def recall(fit: StudyFit, drawn: dict[str, Path]) -> str:
    """The section on the recall laws, with figures."""
    if not fit.recall:
        return ""
    names = ("state_bytes", "pairs", "length")
    rows = [
        (
            law.task,
            law.family,
            f"{law.cells} ({law.models} models)",
            *(str(law.exponents[name]) if name in law.exponents else "-" for name in names),
            "; ".join(filter(None, [f"{law.rmse:.1%}" if law.rmse is not None else "", law.note])),
        )
        for law in fit.recall
    ]
    header = ("task", "family", "rows", "s (state bytes)", "p (pairs)", "q (length)", "RMS error of accuracy")
    return (
        "## Recall\n\nAt the largest budget, share recalled above chance = 1 / (1 + c pairs^p length^q / state_bytes^s); "
        "-: did not vary; held-out sizes are in; 95% intervals by leaving out models one by one (rows of a "
        "model share its scatter).\n\n"
        f"{_table(header, rows)}\n\n"
        + figures(drawn, "recall_against_tokens", "recall_against_state", "recall_against_parameters")
    )


def cells(plan: Plan, results: Sequence[CellResult]) -> str:
    """The table of all cells with their tokens, FLOPs and time."""
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
            f"{r.tflops / float(r.cell.occupied) / peak:.1%}" if peak else "-",
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
        "## Cells\n\nParameters without embeddings; tokens: all that were trained on, recall rows included; "
        "minutes of a cell beside others "
        f"on its device, evaluation included; state: one sequence at {context:,} tokens of context. MFU "
        "counts the cells that share a device.\n\n" + _table((*header, "minutes", "starts"), rows)
    )


def rules(plan: Plan, rule: LearningRateRule | None) -> str:
    """The section on the rules of learning rate and batch size."""
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
    if trunk := plan.study.budgets.trunk:
        lines.append(
            f"- trunks: {len(plan.trunks)}, at a constant rate; each cell branches from the one of its family, size and seed and "
            f"cools down ({trunk.shape}) in its last {trunk.cooldown:.0%} of steps; warmup of the smallest budget. Budgets of one "
            "seed share its trunk, so their noise is not independent"
        )
    return "\n".join(lines)


def provenance(plan: Plan, results: Sequence[CellResult]) -> str:
    """The section of a study's report on hardware, software versions, hours and cost."""
    hours = sum(r.seconds for r in results) / 3600
    predicted = sum(r.cell.seconds for r in results) / 3600
    hardware = plan.study.hardware
    per_device = sum(r.seconds * float(r.cell.occupied) for r in results) / 3600
    versions: dict[str, Any] = results[0].versions if results else {}
    trained = [*plan.trunks, *(r.cell for r in results)]
    rows = [
        ("hardware", "; ".join(dict.fromkeys(r.hardware for r in results))),
        ("commits", ", ".join(sorted({str(r.git_commit) for r in results}))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("FLOPs", f"{sum(cell.own_flops for cell in trained):.3g}"),
        ("tokens", f"{sum(cell.own_tokens for cell in trained):,}"),
        (
            "hours of all cells, one after the other, training (without trunks) and evaluation"
            if plan.trunks
            else "hours of all cells, one after the other, training and evaluation",
            f"{hours:.2f} ({predicted:.2f} predicted)",
        ),
        ("device hours, cells that share a device counted by their share", f"{per_device:.2f}"),
    ]
    if hardware.cost_per_hour:
        rows.append(("cost", f"{per_device * hardware.cost_per_hour:.2f} at {hardware.cost_per_hour:g} a device hour"))
    return "## What was run on what\n\n" + _table(("", ""), rows)


def figures(drawn: dict[str, Path], *names: str) -> str:
    """Markdown of those of the named figures that were drawn."""
    available = [name for name in names if name in drawn]
    return "\n\n".join(f"![{CAPTIONS[name]}](figures/{name}.png)\n*{CAPTIONS[name]}*" for name in available)


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
