"""The tables of `echo-lm study`: the plan, the states of the cells, the laws."""

import time
from collections.abc import Container

from rich.console import Group
from rich.live import Live
from rich.table import Table

from ...pipeline.run.folder import RunFolder
from ...pipeline.run.reader import RunReader
from ..jobs.leases import looks_held
from ..monitor.summary import read_run
from ..progress.bars import console
from .analysis.records import StudyFit
from .cell import lease_path
from .folder import StudyFolder, failed_cells
from .learning_rate import given_rule
from .packing import makespan
from .plan import Plan, StudyCell, to_pack
from .results import CellResult, Pace
from .spending.spent import choice_of, describe_choice
from .trunks.branching import needed_step, reached_step
from .trunks.planning import savings

WATCH_SECONDS = 5.0


def plan_table(plan: Plan) -> Table:
    """The table of a plan, a row per cell."""
    study = plan.study
    rule = given_rule(study.learning_rate, study.families)
    table = _table(("cell", "parameters", "tokens", "steps", "batch", "learning rate", "FLOPs", "epochs", "GiB", "min"))
    for cell in (*plan.trunks, *plan.cells):
        rate = rule.at(cell.family, cell.parameters) * (cell.factor or 1)
        fitted = cell.kind != "sweep" and study.learning_rate.sweep is not None
        table.add_row(
            cell.name + (" (held out)" if cell.held_out and cell.kind == "main" else ""),
            f"{cell.parameters:,}",
            f"{cell.tokens:,}",
            f"{cell.branch_step:,} + {cell.own_steps:,}" if cell.trunk else f"{cell.steps:,}",
            f"{cell.batch_tokens:,}",
            "of the sweep" if fitted else f"{rate:.2e}",
            f"{cell.flops:.2e}",
            "?" if cell.epochs is None else f"{cell.epochs:.2f}",
            f"{cell.memory_gib:.1f}",
            f"{cell.seconds / 60:.1f}",
        )
    return table


def plan_summary(plan: Plan) -> str:
    """The totals of a plan in a few lines."""
    study, hardware = plan.study, plan.study.hardware
    main, sweep = plan.of_kind("main"), plan.of_kind("sweep")
    swept = f" and {len(sweep)} of the learning-rate sweep" if sweep else ""
    if plan.train_tokens is None:
        data = f"epochs unknown until {study.data.name} is prepared (echo-lm study run prepares it)"
    else:
        most = max(plan.cells, key=lambda cell: cell.epochs or 0)
        data = f"{plan.train_tokens:,} tokens of {study.data.name}: {most.epochs:.2f} epochs at most ({most.name})"
    cost = f", cost {plan.cost:,.2f}" if hardware.cost_per_hour else ""
    held = ", ".join(study.held_out_sizes) or "none"
    saved = f"{line}\n" if (line := savings(plan)) else ""
    wide = [size for size in study.sizes if hardware.devices_of(size) > 1]
    together = "".join(f"; {size} on {hardware.devices_of(size)} together" for size in wide)
    most_beside = max(hardware.processes_of(size) for size in study.sizes)
    idle = (
        "" if plan.device_hours - plan.occupied_hours < 0.005 else f" ({plan.occupied_hours:.2f} without idle devices)"
    )
    return (
        f"study {study.name}: {study.question}\n"
        f"{len(main)} cells{swept}; {plan.flops:.3g} FLOPs, {plan.tokens:,} tokens; sizes held out of the fits: {held}\n"
        f"{saved}{data}\n"
        f"predicted {plan.hours:.2f} h on {hardware.devices} x {hardware.name} "
        f"({hardware.device}, up to {most_beside} cells each{together}), {plan.device_hours:.2f} device hours{idle}{cost}"
    )


def watch_status(folder: StudyFolder, watch: bool) -> None:
    """Print the states of the cells; with `watch`, repeatedly until all are done or failed."""
    if not watch:
        console.print(status_view(folder)[0])
        return
    view, remaining = status_view(folder)
    with Live(view, console=console, auto_refresh=False) as live:
        while remaining:
            time.sleep(WATCH_SECONDS)
            view, remaining = status_view(folder)
            live.update(view, refresh=True)


def status_view(folder: StudyFolder) -> tuple[Group, int]:
    """The table of the cells with a line of totals, and the number of cells that are neither done nor failed."""
    plan = folder.load_plan()
    results = {result.cell.name: result for result in folder.results(plan)}
    failed = failed_cells(folder, plan.cells)
    table = _table(("cell", "state", "step", "loss", "tokens/s", "ETA"))
    choice = choice_of(folder, plan)
    left_out = choice.left_out if choice else ()
    states = {cell.name: _state(folder, cell, results, failed, left_out) for cell in plan.cells}
    for trunk in plan.trunks:
        table.add_row(trunk.name, _trunk_state(folder, plan, trunk, left_out), *_progress(folder, trunk, None))
    for cell in plan.cells:
        table.add_row(cell.name, states[cell.name], *_progress(folder, cell, results.get(cell.name)))
    remaining = [cell for cell in plan.cells if states[cell.name] in ("running", "waiting")]
    shown = ("done", "running", "waiting", "failed", *(["left out"] if left_out else []))
    counts = ", ".join(f"{list(states.values()).count(s)} {s}" for s in shown)
    lines = [f"{counts}; about {_remaining_hours(plan, remaining, results):.2f} h left if started anew"]
    lines += [line] if (line := describe_choice(choice)) else []
    lines += [f"failed: {name}: {reason}" for name, reason in failed.items() if states[name] == "failed"]
    return Group(table, "\n".join(lines)), len(remaining)


def laws_table(fit: StudyFit) -> Table:
    """The loss law of every family."""
    table = _table(("family", "cells", "E", "A", "B", "alpha", "beta", "noise"))
    for law in fit.laws:
        if law.E is None:
            table.add_row(law.family, str(law.cells), law.note, *[""] * 5)
        else:
            values = (law.E, law.A, law.B, law.alpha, law.beta)
            table.add_row(law.family, str(law.cells), *map(str, values), f"{law.scale:.2%}")
    return table


def _state(
    folder: StudyFolder,
    cell: StudyCell,
    results: dict[str, CellResult],
    failed: dict[str, str],
    left_out: Container[str],
) -> str:
    if cell.name in results:
        return "done"
    if looks_held(lease_path(folder.run(cell))):
        return "running"
    if cell.name in failed:
        return "failed"
    return "left out" if cell.name in left_out else "waiting"


def _trunk_state(folder: StudyFolder, plan: Plan, trunk: StudyCell, left_out: Container[str]) -> str:
    """The state of a trunk, which is done when the cells that are not left out need it no more."""
    branches = [(c, folder.run(c)) for c in plan.cells if c.trunk == trunk.name and c.name not in left_out]
    if reached_step(folder.run(trunk)) >= needed_step(branches):
        return "done"
    if looks_held(lease_path(folder.run(trunk))):
        return "running"
    return "failed" if folder.failure_file(trunk).is_file() else "waiting"


def _progress(folder: StudyFolder, cell: StudyCell, result: CellResult | None) -> tuple[str, str, str, str]:
    """Step, loss, tokens/s and ETA as text; the loss of a finished cell is the evaluated one."""
    if result is not None:
        return f"{cell.steps}/{cell.steps}", f"{result.loss:.4f}", f"{result.tokens_per_second:,.0f}", "-"
    run = RunFolder(folder.run(cell))
    if not run.exists():
        return f"0/{cell.steps}", "-", "-", "-"
    summary = read_run(RunReader(run.path)).summary(time.time())
    return (
        f"{summary.step}/{cell.steps}",
        "-" if summary.loss is None else f"{summary.loss:.3f} (training)",
        "-" if summary.tokens_per_second is None else f"{summary.tokens_per_second:,.0f}",
        "-" if summary.eta_seconds is None else f"{summary.eta_seconds / 60:.1f} min",
    )


def _remaining_hours(plan: Plan, cells: list[StudyCell], results: dict[str, CellResult]) -> float:
    """Predicted hours of the remaining cells and their trunks, corrected by the durations of finished ones."""
    trunks = [trunk for trunk in plan.trunks if any(cell.trunk == trunk.name for cell in cells)]
    return makespan(to_pack([*trunks, *cells], Pace(plan.study, results.values())), plan.study.hardware.devices) / 3600


def _table(titles: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="left" if title in ("cell", "state", "family") else "right", no_wrap=True)
    return table
