"""Accuracy against width and against bytes of state, for recall sweeps whose arms are families of models in several sizes."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ...models.accounting import state_bytes
from ..figures.recall import accuracy_in_panels
from ..figures.style import human_bytes
from ..measurements.recall_cells import RecallCell
from .report_tables import markdown, with_interval
from .results import ArmReport, Report, Row

MOST_PANELS = 9  # of one figure


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
    cells = report.sweep.cells
    if not families_of(report) or len(cells) > MOST_PANELS:
        return {}
    name = report.sweep.name

    def width(arm: str, cell: RecallCell) -> int:
        return report.configs[arm].d_model

    def state(arm: str, cell: RecallCell) -> int:
        return state_bytes(report.configs[arm], cell.length)

    return {
        f"{name}_width.png": partial(_draw, report, "width", "width of the model", width, lambda size: f"{size:g}"),
        f"{name}_state.png": partial(_draw, report, "state", "bytes of state of a sequence", state, human_bytes),
    }


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
