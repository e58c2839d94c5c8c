"""Selection of the runs of a recall sweep to train next, and of those that train side by side. Pure: it runs and writes nothing."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ...models.common.errors import UserError
from ...models.common.validation import nearest
from .config import RecallSweep
from .runs import RecallRun, differ_in_rate_alone, is_settled


def chosen_runs(sweep: RecallSweep, planned: Sequence[RecallRun], arms: Collection[str] = ()) -> list[RecallRun]:
    """The runs of the named arms, or all.

    Raises:
        UserError: the sweep has no such arm.
    """
    if unknown := [arm for arm in arms if arm not in sweep.arms]:
        raise UserError(f"sweep {sweep.name} has no arm {unknown[0]!r}: {nearest(unknown[0], sweep.arms)}")
    return [run for run in planned if not arms or run.arm in arms]


def missing_runs(
    sweep: RecallSweep, chosen: Iterable[RecallRun], planned: Iterable[RecallRun], found: Mapping[str, dict[str, Any]]
) -> list[RecallRun]:
    """The chosen runs that have no result and need one.

    Args:
        planned: all runs of the sweep; another rate may have answered enough of a run's cell.
        found: results by id (`result_files.Results`).
    """
    return [run for run in chosen if run.id not in found and not is_settled(sweep, run, planned, found)]


def next_group(
    sweep: RecallSweep, missing: Sequence[RecallRun], together: int, started: Sequence[RecallRun] = ()
) -> list[RecallRun]:
    """The next runs to train side by side, at most `together`.

    Where one learning rate may answer enough of a cell (`each_cell.enough`), its other rates wait for that: a group has no two
    rates of a cell, and none of a cell that is among the `started`.
    """
    group: list[RecallRun] = []
    spares = sweep.each_cell is not None and sweep.each_cell.enough is not None
    for run in missing:
        waits = spares and any(differ_in_rate_alone(run, other) for other in [*group, *started])
        if len(group) < together and not waits and run not in started:
            group.append(run)
    return group
