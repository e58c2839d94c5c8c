"""The protocol `recall`: accuracy on grids of synthetic recall tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.common.errors import UserError
from ...models.common.files import sha256_file
from ..markdown import markdown_table
from ..measurements.recall_cells import RecallGrid, cells_of
from ..registry import EvaluationContext, EvaluationProtocol, ProtocolResult, SuiteResults

if TYPE_CHECKING:
    from ...models import EchoLM

CAPACITY_TASK = "mqar"  # its accuracy is also drawn against pairs / rank and pairs / KiB of state
MAX_CURVES = 6  # of accuracy over training


def resolve(grids: tuple[RecallGrid, ...], folder: Path) -> tuple[RecallGrid, ...]:
    """The grids with the absolute paths of the Python files that define tasks.

    Raises:
        UserError: there is no such file.
    """
    found = tuple(
        grid.model_copy(update={"task": str((folder / grid.task).resolve())}) if grid.task.endswith(".py") else grid
        for grid in grids
    )
    for grid in found:
        if grid.task.endswith(".py") and not Path(grid.task).is_file():
            raise UserError(f"task file {grid.task} does not exist")
    return found


def identity(grids: tuple[RecallGrid, ...]) -> list[dict[str, Any]]:
    """The grids with the contents of task files instead of their paths."""
    values = PROTOCOL.plain(grids)
    for grid in values:
        if grid["task"].endswith(".py"):
            grid["task"] = [Path(grid["task"]).name, sha256_file(Path(grid["task"]))]
    return values


def work(grids: tuple[RecallGrid, ...], context: EvaluationContext) -> int:
    """The cost of the protocol: tokens of all sequences."""
    return sum(cell.tokens for cell in cells_of(grids))


def run(model: EchoLM, grids: tuple[RecallGrid, ...], context: EvaluationContext) -> ProtocolResult:
    """Measure a model: a row for each cell, its accuracy and the mean of each task as metrics; see `evaluate_recall`."""
    from ...data_prep.preparing.tokenizer import reserved_start
    from ...data_prep.recall import RecallVocabulary
    from ..measurements.recall import evaluate_recall, haystack_text

    cells = cells_of(grids)
    vocabulary = RecallVocabulary(reserved_start(context.dataset.tokenizer()))
    text = haystack_text(context.dataset, cells)
    rows = [
        evaluate_recall(
            model,
            cell,
            vocabulary,
            batch_tokens=context.batch_tokens,
            device=context.device,
            seed=context.seed,
            text=text,
            on_batch=context.advance,
        )
        for cell in cells
    ]
    metrics = {f"recall/{row['label']}/length-{row['length']}": row["accuracy"] for row in rows}
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row["accuracy"] for row in rows if row["task"] == task]
        metrics[f"recall/mean/{task}"] = sum(of_task) / len(of_task)
    return ProtocolResult(rows, metrics)


def summarize(results: SuiteResults) -> list[str]:
    """Figures of the last checkpoint and of the course of training, and a table with a line for each cell."""
    rows = results.last["rows"]
    if not rows:
        return []
    header = ("task", "pairs", "length", "queries", "accuracy", "95% interval", "chance", "ceiling")
    images = [f"![{path.stem}](figures/{path.name})" for path in _draw(results)]
    return ["\n".join(images), markdown_table(header, map(_line, rows))]


def _draw(results: SuiteResults) -> list[Path]:
    """Draw the figures that the rows allow; returns their paths."""
    from ..figures import recall as figures

    suite, folder = results.suite, results.folder / "figures"
    rows, model = results.last["rows"], results.last.get("model") or {}
    labels = list(dict.fromkeys(row["label"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    drawn = []
    for task in tasks:
        of_task = [row for row in rows if row["task"] == task]
        if len({row["length"] for row in of_task}) > 1 or len({row["label"] for row in of_task}) > 1:
            drawn.append(figures.accuracy_grid(folder / f"{suite}-{task}.png", rows, task))
    lengths = {label: [row["length"] for row in rows if row["label"] == label] for label in labels}
    longest = max(labels, key=lambda label: (max(lengths[label]), len(lengths[label])))
    if len(lengths[longest]) > 1:
        arm = {f"step {results.last['step']:,}": rows}
        drawn.append(figures.accuracy_by_length(folder / f"{suite}-length.png", arm, longest))
    if len({row["options"]["depth"] for row in rows if "depth" in row.get("options", {})}) > 1:
        drawn.append(figures.depth_by_length(folder / f"{suite}-depth.png", rows))
    if len({row["pairs"] for row in rows if row["task"] == CAPACITY_TASK}) > 2:
        sizes = {"rank": model.get("rank"), "KiB of state": model.get("state_bytes", 0) / 1024}
        for unit, size in sizes.items():
            if size:
                path = folder / f"{suite}-pairs-per-{unit.split()[-1]}.png"
                drawn.append(figures.capacity_curve(path, {model["name"]: (rows, size)}, CAPACITY_TASK, unit))
    if len(results.results) > 1:
        first = list(dict.fromkeys(next(row["label"] for row in rows if row["task"] == task) for task in tasks))
        path = folder / f"{suite}-training.png"
        drawn.append(figures.recall_by_tokens(path, results.results, first[:MAX_CURVES]))
    return drawn


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["label"],
        str(row["pairs"]),
        f"{row['length']:,}",
        f"{row['queries']:,}",
        f"{row['accuracy']:.1%}",
        f"{row['low']:.1%} to {row['high']:.1%}",
        f"{row['chance']:.1%}",
        f"{row.get('ceiling', 1):.0%}",
    )


PROTOCOL = EvaluationProtocol(
    "recall",
    tuple[RecallGrid, ...],
    work,
    run,
    summarize,
    rows_key="rows",
    resolve=resolve,
    identity=identity,
    uses_adapted_copy=True,
)
