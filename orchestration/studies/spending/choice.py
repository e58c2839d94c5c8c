"""Choice of the cells that fit into the GPU-hours left, a pure function of the plan, the records and the hours spent."""

from collections.abc import Iterable, Mapping

from ....models.common.config import Record
from ..plan import Plan, StudyCell
from ..results import CellResult, Pace


class Choice(Record):
    """The cells chosen to be trained within `limits.gpu_hours`. Hours are hours of device time: a cell counts the devices, or the
    share of one, that it holds.

    Attributes:
        limit, spent: hours in all, and so far.
        hours: predicted hours of `kept` and `waiting`; `all_hours`: of every cell that is left.
        kept: cells that may start now, in the order in which hours were given to them.
        waiting: cells that fit by the prediction, but start only when the cheapest cells of their size have been measured.
        left_out: cells that no longer fit.
    """

    limit: float
    spent: float
    hours: float
    all_hours: float
    kept: tuple[str, ...]
    waiting: tuple[str, ...]
    left_out: tuple[str, ...]


class Progress(Record):
    """The progress of a study's cells and trunks.

    Attributes:
        ended: names of the cells that need no more hours: with a record, or failed for good.
        begun: names of the cells that need their trunk no more.
        shares: share of the training that is done, 0 to 1, by name of cell or trunk; 0 for those that are missing.
    """

    ended: frozenset[str] = frozenset()
    begun: frozenset[str] = frozenset()
    shares: Mapping[str, float] = {}


def choose(
    plan: Plan, limit: float, results: Iterable[CellResult] = (), progress: Progress | None = None, spent: float = 0.0
) -> Choice:
    """Choose the cells to train within `limit` hours of device time.

    The cells of one size, budget and seed, those of all families together, are taken or left out as one group, so that families
    stay comparable. The sweep for the learning rate comes first. Then groups are taken from the cheapest to the costliest, all of
    the study's first seed before those of its second, as long as they fit: repetitions and the costliest cells go first.

    The prediction is that of `Pace`: by the speed of finished cells. Until a cell of a size is finished, only the cheapest group of
    that size may start.
    """
    progress, results = progress or Progress(), list(results)
    pace, left, reached = Pace(plan.study, results), limit - spent, {}
    measured, begun_sizes = {result.cell.size for result in results}, set()
    kept, waiting, left_out, sweep_fits = [], [], [], True
    for group in _groups(plan):
        cells = [cell for cell in group if cell.name not in progress.ended]
        if not cells:
            continue
        swept, sizes = cells[0].kind == "sweep", {cell.size for cell in cells}
        hours, then_reached = _hours(plan, pace, progress, cells, reached)
        if hours > left or not sweep_fits:
            left_out += [cell.name for cell in cells]
            sweep_fits &= not swept  # without it there is no learning rate for the others
            continue
        left, reached = left - hours, then_reached
        held_back = not swept and not sizes <= measured and sizes <= begun_sizes
        begun_sizes |= sizes
        (waiting if held_back else kept).extend(cell.name for cell in cells)
    all_left = [cell for cell in plan.cells if cell.name not in progress.ended]
    return Choice(
        limit=limit,
        spent=spent,
        hours=limit - spent - left,
        all_hours=_hours(plan, pace, progress, all_left, {})[0],
        kept=tuple(kept),
        waiting=tuple(waiting),
        left_out=tuple(left_out),
    )


def without_left_out(plan: Plan, choice: Choice) -> Plan:
    """The plan without the cells that are left out, for judging the design of the others; its hours remain those of all cells."""
    return plan.model_copy(update={"cells": tuple(cell for cell in plan.cells if cell.name not in choice.left_out)})


def _hours(
    plan: Plan, pace: Pace, progress: Progress, cells: Iterable[StudyCell], reached: Mapping[str, float]
) -> tuple[float, dict[str, float]]:
    """Predicted hours of device time of cells, with the stretches of trunks that they need.

    Args:
        reached: steps to which trunks are trained for cells that were chosen before.

    Returns:
        the hours, and `reached` with these cells.
    """
    seconds, reached = 0.0, dict(reached)
    trunks = {trunk.name: trunk for trunk in plan.trunks}
    for cell in cells:
        seconds += pace(cell, progress.shares.get(cell.name, 0.0)) * float(cell.occupied)
        trunk = trunks.get(cell.trunk or "")
        if trunk is None or cell.name in progress.begun:
            continue
        step = reached.get(trunk.name, progress.shares.get(trunk.name, 0.0) * trunk.steps)
        if cell.branch_step > step:
            stretch = pace(trunk, 1 - (cell.branch_step - step) / trunk.steps)
            stretch -= pace(trunk, 1) if trunk.name in reached else 0.0  # its process has started
            seconds += stretch * float(trunk.occupied)
            reached[trunk.name] = cell.branch_step
    return seconds / 3600, reached


def _groups(plan: Plan) -> list[list[StudyCell]]:
    """The cells in groups, in the order in which hours are given to them."""
    sweep, groups = plan.of_kind("sweep"), {}
    for cell in plan.of_kind("main"):
        groups.setdefault((plan.study.seeds.index(cell.seed), cell.size, cell.budget), []).append(cell)
    hardware = plan.study.hardware

    def cost(cell: StudyCell) -> float:
        """Planned device time, with its part of a trunk: speeds that are measured do not change the order."""
        return hardware.seconds_of(cell.size, cell.flops) * float(cell.occupied)

    ordered = sorted(groups.items(), key=lambda item: (item[0][0], sum(map(cost, item[1])), item[0]))
    return ([sweep] if sweep else []) + [cells for _, cells in ordered]
