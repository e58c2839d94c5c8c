"""Device hours that a study has spent, the progress of its cells, and the cells that still fit, all read from its folder."""

from pydantic import ValidationError

from ....models.common.config import Record
from ....models.common.errors import UserError
from ....models.common.files import read_json, write_json
from ....pipeline.run.events import read_events
from ....pipeline.run.folder import RunFolder
from ...jobs.leases import looks_held
from ..cell import lease_path
from ..folder import StudyFolder, failed_cells, trained_share
from ..plan import Plan, StudyCell
from ..results import seconds_of_attempts
from ..trunks.branching import has_begun, reached_step
from .choice import Choice, Progress, choose


class Spending(Record):
    """The contents of `spending.json`: the choices of the study's commands, the last one last."""

    version: int = 1
    choices: tuple[Choice, ...] = ()


def choice_of(folder: StudyFolder, plan: Plan) -> Choice | None:
    """The cells that fit into the GPU-hours of a study, whose folder need not exist yet; None without `limits.gpu_hours`."""
    if plan.study.limits.gpu_hours is None:
        return None
    progress, spent = progress_of(folder, plan), spent_hours(folder, plan)
    return choose(plan, plan.study.limits.gpu_hours, folder.results(plan), progress, spent)


def spent_hours(folder: StudyFolder, plan: Plan) -> float:
    """Hours of device time of all cells and trunks so far.

    A finished cell's are in its record. For others the time between their events counts, and `hardware.startup_seconds` for each
    start.
    """
    results = {result.cell.name: result for result in folder.results(plan)}
    seconds = sum(result.seconds * float(result.cell.occupied) for result in results.values())
    for cell in (*plan.trunks, *plan.cells):
        if cell.name not in results and RunFolder(folder.run(cell)).exists():
            events = read_events(RunFolder(folder.run(cell)).events_file)
            starts = sum(event["kind"] == "start" and not event.get("same_process") for event in events)
            worked = seconds_of_attempts(events) + starts * plan.study.hardware.startup_seconds
            seconds += worked * float(cell.occupied)
    return seconds / 3600


def progress_of(folder: StudyFolder, plan: Plan) -> Progress:
    """How far the cells and trunks of a study have come."""
    ended = {result.cell.name for result in folder.results(plan)} | set(failed_cells(folder, plan.cells))
    left = [cell for cell in plan.cells if cell.name not in ended]
    shares = {cell.name: trained_share(folder, cell) for cell in left}
    shares |= {trunk.name: reached_step(folder.run(trunk)) / trunk.steps for trunk in plan.trunks if trunk.steps}
    for cell in (*plan.trunks, *left):
        if looks_held(lease_path(folder.run(cell))):  # it may be far beyond its last checkpoint
            shares[cell.name] = max(shares.get(cell.name, 0.0), _running_share(folder, cell))
    begun = {cell.name for cell in left if has_begun(folder.run(cell))}
    return Progress(ended=frozenset(ended), begun=frozenset(begun), shares=shares)


def refuse_unaffordable(choice: Choice | None, plan: Plan) -> None:
    """Refuse a study of which nothing was trained yet and nothing fits into its GPU-hours.

    Raises:
        UserError: the cheapest cells, or the sweep that comes before all others, take more than `limits.gpu_hours`.
    """
    if choice is None or choice.kept or choice.spent or not choice.left_out:
        return
    first = plan.by_name[choice.left_out[0]]
    what = "the sweep for the learning rate" if first.kind == "sweep" else f"the cheapest cells ({first.name})"
    raise UserError(
        f"study {plan.study.name}: {what} take more than limits.gpu_hours={choice.limit:g} by the speed hardware.tflops: raise the "
        f"limit (all cells take {choice.all_hours:.3g} h), or correct hardware.tflops"
    )


def describe_choice(choice: Choice | None) -> str:
    """A line of what fits into the GPU-hours and what does not; empty without a limit."""
    if choice is None:
        return ""
    chosen = len(choice.kept) + len(choice.waiting)
    line = f"limits.gpu_hours={choice.limit:g}: {choice.spent:.3g} h of device time spent, "
    line += f"{choice.hours:.3g} h predicted for {chosen} more cells"
    if not choice.left_out:
        return line
    names = ", ".join(choice.left_out[:6]) + (" ..." if len(choice.left_out) > 6 else "")
    return (
        f"{line}; {len(choice.left_out)} cells no longer fit and are left out: {names} (a limit of about "
        f"{choice.spent + choice.all_hours:.3g} h has room for all)"
    )


def record_choice(folder: StudyFolder, choice: Choice) -> None:
    """Add a choice to `spending.json`, if it leaves out other cells than the last one there or has another limit.

    Raises:
        UserError: the file was damaged.
    """
    path = folder.spending_file
    try:
        before = Spending.model_validate(read_json(path)).choices if path.is_file() else ()
    except ValidationError as error:
        raise UserError(f"{path} is damaged: move it away, the study goes on without what it said") from error
    if not before or (before[-1].limit, before[-1].left_out) != (choice.limit, choice.left_out):
        write_json(path, Spending(choices=(*before, choice)).model_dump(mode="json"))


def _running_share(folder: StudyFolder, cell: StudyCell) -> float:
    """The share of a running cell's or trunk's own steps that its events say are done."""
    steps = [event["step"] for event in read_events(RunFolder(folder.run(cell)).events_file) if event["kind"] == "step"]
    return min(1.0, max(0, steps[-1] - cell.branch_step) / cell.own_steps) if steps else 0.0
