"""Accuracy against bytes of state, for recall sweeps whose arms are families in several widths or have bounded KV caches."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import fmean

from ...models.accounting import state_bytes
from ..figures.recall import accuracy_in_panels
from ..figures.style import human_bytes
from ..measurements.recall_cells import RecallCell
from .report_tables import markdown, percent, with_interval
from .results import ArmReport, Report, Row, bounded_rows, budget_of

MOST_PANELS = 9  # of one figure
STATE_AXIS = "bytes of state of a sequence"


def families_of(report: Report) -> dict[str, list[ArmReport]]:
    """The arms of each family in the sweep's order; empty unless a family has arms of several widths.

    Arms of one family are called `NAME-WIDTH`, as in `attention-64` and `attention-128`.
    """
    families: dict[str, list[ArmReport]] = {}
    for arm in report.arms:
        width = f"-{report.configs[arm.name].d_model}"
        if arm.name.endswith(width):
            families.setdefault(arm.name.removesuffix(width), []).append(arm)
    return families if any(len(arms) > 1 for arms in families.values()) else {}


def state_figures(report: Report) -> dict[str, Callable[[Path], Path]]:
    """The drawing functions of the figures against width and state, by the names of their files."""
    cells, name = report.sweep.cells, report.sweep.name
    figures: dict[str, Callable[[Path], Path]] = {}

    def width(arm: str, cell: RecallCell) -> int:
        return report.configs[arm].d_model

    def state(arm: str, cell: RecallCell) -> int:
        return state_bytes(report.configs[arm], cell.length)

    if families_of(report) and len(cells) <= MOST_PANELS:
        figures[f"{name}_width.png"] = partial(
            _draw, report, "width", "width of the model", width, lambda size: f"{size:g}"
        )
        figures[f"{name}_state.png"] = partial(_draw, report, "state", STATE_AXIS, state, human_bytes)
    for arm in bounded_arms(report):
        figures[f"{name}_policies-{arm.name}.png"] = partial(_draw_policies, report, arm)
    if bounded_arms(report):
        for length in sorted({cell.length for cell in cells}):
            figures[f"{name}_state-{length}.png"] = partial(_draw_budgets, report, length)
    return figures


def _draw(
    report: Report,
    what: str,
    axis: str,
    size: Callable[[str, RecallCell], int],
    shown: Callable[[float], str],
    path: Path,
) -> Path:
    cells = {}
    for cell in report.sweep.cells:
        curves = {}
        for family, arms in families_of(report).items():
            found = [(size(arm.name, cell), row) for arm in arms if (row := pooled_at(report, arm, cell))]
            if found:
                curves[family] = found
        cells[_name(report, cell)] = curves
    return accuracy_in_panels(path, f"Accuracy against {what}: {report.sweep.name}", axis, cells, shown)


def accuracy_by_state(report: Report) -> list[str]:
    """The section with accuracy, width and bytes of state of every arm that ran; empty for sweeps without sizes."""
    cells = report.sweep.cells
    lines = []
    for family, arms in families_of(report).items():
        for arm in arms:
            config = report.configs[arm.name]
            found = [pooled_at(report, arm, cell) for cell in cells]
            if any(found):
                states = [human_bytes(state_bytes(config, cell.length)) for cell in cells]
                pairs = zip(found, states, strict=True)
                lines.append([family, f"{config.d_model}", *(f"{with_interval(row)}; {state}" for row, state in pairs)])
    if not lines:
        return []
    said = (
        "Percent (95% Wilson interval); bytes of the decoding state of one sequence of that length, in fp32. A KV cache is counted "
        "at the length of the sequence, other states have one size."
    )
    head = ["family", "width", *(_name(report, cell) for cell in cells)]
    return [f"## Width and state\n\n{said}\n\n{markdown(head, lines)}"]


def pooled_at(report: Report, arm: ArmReport, cell: RecallCell) -> Row | None:
    """Accuracy of the arm on one cell, its seeds pooled."""
    return report.pooled(arm, lambda row: (row["label"], row["length"]) == (cell.label, cell.length))


def _name(report: Report, cell: RecallCell) -> str:
    what = f"{cell.pairs} pairs" if _only_pairs_differ(report.sweep.cells) else cell.label
    return f"{what} in {cell.length:,} tokens"


def _only_pairs_differ(cells: Iterable[RecallCell]) -> bool:
    return len({(cell.name, str(cell.options)) for cell in cells}) == 1


def bounded_arms(report: Report) -> list[ArmReport]:
    """The arms that have results under bounded KV caches."""
    return [arm for arm in report.arms if bounded_rows(arm)]


def best_at(report: Report, arm: ArmReport, cell: RecallCell) -> dict[int, tuple[str, Row]]:
    """The policy with most right answers on a cell and its accuracy, for each budget in bytes."""
    best: dict[int, tuple[str, Row]] = {}
    for (policy, size), row in report.bounded(arm, cell.label, {cell.length}).items():
        if size not in best or row["accuracy"] > best[size][1]["accuracy"]:
            best[size] = policy, row
    return dict(sorted(best.items()))


def _common_lengths(arm: ArmReport) -> set[int]:
    """The lengths at which the arm has results under all of its bounded caches."""
    lengths: dict[tuple[str, int], set[int]] = {}
    for row in bounded_rows(arm):
        lengths.setdefault(budget_of(row), set()).add(row["length"])
    return set.intersection(*lengths.values())


def _draw_policies(report: Report, arm: ArmReport, path: Path) -> Path:
    lengths = _common_lengths(arm)
    cells = {}
    for label in dict.fromkeys(cell.label for cell in report.sweep.cells):
        curves: dict[str, list[tuple[float, Row]]] = {}
        for (policy, size), row in report.bounded(arm, label, lengths).items():
            curves.setdefault(policy, []).append((size, row))
        cells[label] = curves
    title = f"Cache policies, {arm.name}: {report.sweep.name}"
    return accuracy_in_panels(path, title, "bytes of state of a sequence, at most", cells, human_bytes)


def _draw_budgets(report: Report, length: int, path: Path) -> Path:
    cells = {}
    for cell in report.sweep.cells:
        if cell.length == length:
            curves: dict[str, list[tuple[float, Row]]] = {}
            for arm in report.arms:
                if row := pooled_at(report, arm, cell):
                    curves[arm.name] = [(state_bytes(report.configs[arm.name], length), row)]
            for arm in bounded_arms(report):
                curves[f"{arm.name}, bounded"] = [(size, row) for size, (_, row) in best_at(report, arm, cell).items()]
            cells[cell.label] = curves
    title = f"Accuracy against state at {length:,} tokens: {report.sweep.name}"
    return accuracy_in_panels(path, title, STATE_AXIS, cells, human_bytes)


def accuracy_by_budget(report: Report) -> list[str]:
    """For each length a table of what every arm answers with its own state and under each budget, and one of all policies."""
    arms = bounded_arms(report)
    if not arms:
        return []
    pieces = sorted({row["cache"]["piece"] for arm in arms for row in bounded_rows(arm)})
    said = (
        "Percent (95% Wilson interval), seeds pooled; bytes of the decoding state of one sequence in fp32, all layers together. "
        f"Under a budget the sequence is read in pieces of {' or '.join(map(str, pieces))} tokens, the KV cache is cut "
        "after each, and the question comes after that. Shown is the policy with most right answers in the cell, chosen "
        "on these very answers."
    )
    parts = []
    for length in sorted({cell.length for cell in report.sweep.cells}):
        cells = [cell for cell in report.sweep.cells if cell.length == length]
        lines = []
        for arm in report.arms:
            rows = [pooled_at(report, arm, cell) for cell in cells]
            if any(rows):
                state = human_bytes(state_bytes(report.configs[arm.name], length))
                lines.append([arm.name, state, *map(with_interval, rows)])
        for arm in arms:
            best = [best_at(report, arm, cell) for cell in cells]
            for size in sorted({size for found in best for size in found}):
                shown = [
                    f"{with_interval(found[size][1])} {found[size][0]}" if size in found else "-" for found in best
                ]
                lines.append([f"{arm.name}, bounded", human_bytes(size), *shown])
        head = ["arm", "state", *(cell.label for cell in cells)]
        parts.append(f"At {length:,} tokens:\n\n{markdown(head, lines)}")
    parts[0] = f"## State or cache\n\n{said}\n\n{parts[0]}"
    return [*parts, _all_policies(report, arms)]


def _all_policies(report: Report, arms: list[ArmReport]) -> str:
    labels = list(dict.fromkeys(cell.label for cell in report.sweep.cells))
    lines, sizes, shares = [], set(), {}
    for arm in arms:
        lengths = _common_lengths(arm)
        for label in labels:
            for (policy, size), row in report.bounded(arm, label, lengths).items():
                shares.setdefault((arm.name, policy), {}).setdefault(size, []).append(row["accuracy"])
                sizes.add(size)
    for (arm_name, policy), by_size in shares.items():
        means = [percent(fmean(by_size[size])) if size in by_size else "-" for size in sorted(sizes)]
        lines.append([arm_name, policy, *means])
    said = (
        "All policies: the mean over the kinds of question, pooled over the lengths at which every budget is evaluated."
    )
    return f"{said}\n\n" + markdown(["arm", "policy", *map(human_bytes, sorted(sizes))], lines)
