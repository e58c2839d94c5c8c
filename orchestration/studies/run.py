"""Running a study: start its cells on free devices, retry failures, list remaining cells. All state is in files.

Any number of supervisors, on any number of machines that share the folder, may run one study: each cell is claimed by a lease.
"""

import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from pydantic import ValidationError

from ...data_prep.loading.dataset import Dataset
from ...evals.config import load_suite
from ...evals.layout import complete_checkpoints
from ...models.common.errors import UserError
from ...models.common.files import read_json, write_json
from ...models.common.validation import first_difference
from ...pipeline.config import RunConfig
from ..jobs.leases import holder
from ..preparation.executors import ray_data_map
from ..preparation.prepare import dataset_is_complete, prepare_dataset
from ..progress.bars import console, stage
from .cell import lease_path, result_file
from .config import StudyConfig, load_study
from .executors import Executor, ProcessExecutor, RayExecutor
from .learning_rate import LearningRateRule, fitted_rule, given_rule
from .packing import longest_first
from .plan import Plan, StudyCell, cell_config, jobs
from .planner import make_plan
from .results import CellResult, Pace, read_result

POLL_SECONDS = 0.5
HOLDER_SECONDS = 5.0  # between two checks of a cell that another process holds


class StudyFolder:
    """Paths of a study below `path`. Making the object touches nothing."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.plan_file = self.path / "plan.json"
        self.rule_file = self.path / "learning_rate.json"
        self.fit_file = self.path / "fit.json"
        self.runs = self.path / "runs"

    def run(self, cell: StudyCell) -> Path:
        """The run folder of a cell."""
        return self.runs / cell.name

    def failure_file(self, cell: StudyCell) -> Path:
        """The file of a cell whose last attempt failed for good."""
        return self.path / "failures" / f"{cell.name}.json"

    def load_plan(self) -> Plan:
        """The stored plan.

        Raises:
            UserError: nothing was run here, or the file was damaged.
        """
        if not self.plan_file.is_file():
            raise UserError(f"{self.path} holds no study (no plan.json): start it with `echo-lm study run`")
        try:
            return Plan.model_validate(read_json(self.plan_file))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(f"{self.plan_file} does not fit this version at {where}: run the study again") from error

    def results(self, plan: Plan) -> list[CellResult]:
        """The records of the finished cells, in the plan's order."""
        results = (read_result(result_file(self.run(cell))) for cell in plan.cells)
        return [result for result in results if result is not None]


def find_study(target: str, studies: Path) -> StudyFolder:
    """Find the folder of a study that was started, by its path, its name or its file.

    Raises:
        UserError: there is no such study.
    """
    folder = StudyFolder(target)
    if folder.plan_file.is_file():
        return folder
    if (folder := StudyFolder(studies / target)).plan_file.is_file():
        return folder
    folder = StudyFolder(studies / load_study(target).name)
    folder.load_plan()
    return folder


def plan_study(study: StudyConfig, data: Path) -> Plan:
    """Plan a study, with epochs if its data is prepared.

    Raises:
        UserError: an impossible cell, or a suite that does not exist.
    """
    for suite in study.evaluation.suites:
        load_suite(suite)
    ready = dataset_is_complete(study.data, data)
    return make_plan(study, Dataset.open(data / study.data.name) if ready else None)


def run_study(
    study: StudyConfig,
    studies: Path,
    data: Path,
    *,
    use_ray: bool = False,
    address: str | None = None,
    seconds: float | None = None,
) -> StudyFolder:
    """Prepare the data and run every cell without a record; resumes an interrupted study.

    Args:
        seconds: start no cell that is predicted to end later than that from now (`Pace`); the others remain for the next
            call (`remaining_cells`). Not with Ray.

    Raises:
        UserError: bad input, a folder of another study, or cells that failed (`study.attempts` times, or less where no time
            was left for another); by then all others are done, or left for lack of time.
    """
    from ..jobs.cluster import ray_cluster

    if use_ray and seconds is not None:
        raise UserError(
            "--for needs the processes of this machine: Ray queues every cell at once; leave --ray or --for out"
        )
    folder = StudyFolder(studies / study.name)
    until = math.inf if seconds is None else time.monotonic() + seconds
    plan_study(study, data)  # an impossible cell is refused before any data is prepared
    with ray_cluster(address) if use_ray else nullcontext():
        dataset = prepare_dataset(study.data, data, map_units=ray_data_map if use_ray else None)
        plan = make_plan(study, Dataset.open(dataset, verify=True))
        _store_plan(folder, plan)
        hardware = study.hardware
        with RayExecutor() if use_ray else ProcessExecutor(hardware.devices, hardware.device == "cuda") as executor:
            rule = given_rule(study.learning_rate, study.families)
            sweep = plan.of_kind("sweep")
            if folder.rule_file.is_file():  # cells were trained with it: failed sweep cells must not change it any more
                failed = failed_cells(folder, sweep)
                sweep = [cell for cell in sweep if cell.name not in failed]
            _run_cells(folder, plan, sweep, rule, dataset, executor, until)
            if not any(cell.kind == "sweep" for cell in remaining_cells(folder, plan)):
                swept = study.learning_rate.sweep is not None and folder.rule_file.is_file()
                rule = stored_rule(folder) if swept else learning_rates(folder, plan)
                if not folder.rule_file.is_file():
                    write_json(folder.rule_file, rule.model_dump(mode="json"))
                _run_cells(folder, plan, plan.of_kind("main"), rule, dataset, executor, until)
    if failed := failed_cells(folder, plan.cells):
        name, reason = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(plan.cells)} cells failed, first {name}: {reason} (see {folder.path / 'logs'}); the same "
            "command tries them again, but for those of a sweep whose rule others train by; `echo-lm study report` goes "
            "without them"
        )
    return folder


def stored_rule(folder: StudyFolder) -> LearningRateRule:
    """The stored learning-rate rule of the main cells.

    Raises:
        UserError: the file was damaged.
    """
    try:
        return LearningRateRule.model_validate(read_json(folder.rule_file))
    except ValidationError as error:
        raise UserError(f"{folder.rule_file} is damaged: move it away, the sweep gives it again") from error


def learning_rates(folder: StudyFolder, plan: Plan) -> LearningRateRule:
    """The learning-rate rule of the main cells: configured, or fitted to the finished sweep.

    Raises:
        UserError: the sweep has too few finished cells.
    """
    study = plan.study
    config = study.learning_rate
    if config.sweep is None:
        return given_rule(config, study.families)
    results = {result.cell.name: result for result in folder.results(plan)}
    swept = {family: {size: (0, {}) for size in config.sweep.sizes} for family in study.families}
    for cell in plan.of_kind("sweep"):
        _, losses = swept[cell.family][cell.size]
        swept[cell.family][cell.size] = (cell.parameters, losses)
        if cell.name in results:
            losses[results[cell.name].learning_rate] = results[cell.name].loss
    return fitted_rule(config, swept)


def _run_cells(
    folder: StudyFolder,
    plan: Plan,
    cells: list[StudyCell],
    rule: LearningRateRule,
    dataset: Path,
    executor: Executor,
    until: float,
) -> None:
    """Run the cells that have no record and would end before `until` (monotonic seconds); those that fail leave a failure file."""
    study = plan.study
    by_name = {cell.name: cell for cell in cells}
    configs = {cell.name: cell_config(study, cell, rule) for cell in cells}
    names = [job.name for job in longest_first(jobs(cells))]
    unfinished = [name for name in names if not _is_done(folder, by_name[name], configs[name])]
    errors: dict[str, list[str]] = {}
    checked_at: dict[str, float] = {}
    running: set[str] = set()
    if not unfinished:
        return
    with stage("cells", total=len(cells), unit="cells", done=len(cells) - len(unfinished)) as progress:
        waiting = list(unfinished)
        pace = Pace(study, folder.results(plan))
        while running or any(_in_time(pace, by_name[name], folder, until) for name in waiting):
            for name in list(waiting):
                if _is_done(folder, by_name[name], configs[name]):  # by another supervisor
                    waiting.remove(name)
                    continue
                if _held_elsewhere(folder.run(by_name[name]), checked_at):
                    continue
                if not _in_time(pace, by_name[name], folder, until):
                    continue
                if not executor.start(plan, by_name[name], configs[name], folder.run(by_name[name]), dataset):
                    continue
                waiting.remove(name)
                running.add(name)
            for name, error in executor.ended():
                running.remove(name)
                if error is not None:
                    errors.setdefault(name, []).append(error)
                    console.print(
                        f"cell {name}, attempt {len(errors[name])} of {study.attempts}: {error}", markup=False
                    )
                    if len(errors[name]) < study.attempts:
                        waiting.append(name)
                    else:
                        _write_failure(folder, by_name[name], errors[name])
                elif not _is_done(folder, by_name[name], configs[name]):
                    waiting.append(name)  # another process claimed it first
                else:
                    folder.failure_file(by_name[name]).unlink(missing_ok=True)
                    pace = Pace(study, folder.results(plan))
            failed = sum(len(cell_errors) >= study.attempts for cell_errors in errors.values())
            progress.update(len(cells) - len(waiting) - len(running) - failed, note=" ".join(sorted(running)))
            time.sleep(POLL_SECONDS)
    for name in waiting:  # without time for another attempt
        if name in errors:
            _write_failure(folder, by_name[name], errors[name])


def _write_failure(folder: StudyFolder, cell: StudyCell, errors: list[str]) -> None:
    write_json(folder.failure_file(cell), {"errors": errors, "time": time.time()})


def _in_time(pace: Pace, cell: StudyCell, folder: StudyFolder, until: float) -> bool:
    """Whether the cell, started now, would end before `until` (monotonic seconds)."""
    return until == math.inf or time.monotonic() + pace(cell, _trained_share(folder, cell)) <= until


def _trained_share(folder: StudyFolder, cell: StudyCell) -> float:
    """The share of the cell's training in its last checkpoint, 0 to 1."""
    steps = [record["step"] for _, record in complete_checkpoints(folder.run(cell))]
    return max(steps, default=0) / cell.steps


def _is_done(folder: StudyFolder, cell: StudyCell, config: RunConfig) -> bool:
    """Whether the cell has its record.

    Raises:
        UserError: the record is of another configuration.
    """
    result = read_result(result_file(folder.run(cell)))
    if result is None:
        return False
    if result.identity != config.identity():
        raise UserError(
            f"{folder.run(cell)} was trained with another configuration than the study now asks for: "
            "name the changed study anew, or move that folder away"
        )
    return True


def _held_elsewhere(run: Path, checked_at: dict[str, float]) -> bool:
    now = time.monotonic()
    if now - checked_at.get(run.name, -HOLDER_SECONDS) < HOLDER_SECONDS:
        return True
    if holder(lease_path(run)) is None:
        checked_at.pop(run.name, None)
        return False
    checked_at[run.name] = now
    return True


def _store_plan(folder: StudyFolder, plan: Plan) -> None:
    """Write the plan; the cells of a stored plan must be unchanged and must all be in the new one.

    Raises:
        UserError: the study in the folder is another one.
    """
    if folder.plan_file.is_file():
        old = {cell.name: cell for cell in folder.load_plan().cells}
        new = {cell.name: cell for cell in plan.cells}
        for name, cell in old.items():
            if name not in new:
                raise UserError(
                    f"{folder.path} holds cell {name}, which the study no longer plans: put it back, or name the study anew"
                )
            # These may change, since they do not affect the result of a cell.
            ignore = {"seconds", "per_device", "memory_gib", "held_out", "epochs", "state_bytes"}
            difference = first_difference(
                cell.model_dump(mode="json", exclude=ignore), new[name].model_dump(mode="json", exclude=ignore)
            )
            if difference:
                field, before, after = difference
                raise UserError(
                    f"{folder.path} holds cell {name} with another {field} (stored {before!r}, asked {after!r}): "
                    "name the study anew"
                )
    write_json(folder.plan_file, plan.model_dump(mode="json"))


def remaining_cells(folder: StudyFolder, plan: Plan) -> list[StudyCell]:
    """Cells that are neither done nor failed."""
    finished, failed = {result.cell.name for result in folder.results(plan)}, failed_cells(folder, plan.cells)
    return [cell for cell in plan.cells if cell.name not in finished and cell.name not in failed]


def describe_remaining(folder: StudyFolder, plan: Plan) -> str:
    """A line with the number of remaining cells and their predicted minutes; empty if none remain."""
    remaining = remaining_cells(folder, plan)
    if not remaining:
        return ""
    pace = Pace(plan.study, folder.results(plan))
    minutes = [pace(cell, _trained_share(folder, cell)) / 60 for cell in remaining]
    return (
        f"{len(remaining)} of {len(plan.cells)} cells are left, for lack of time or because somebody else has them: they take "
        f"about {min(minutes):.1f} to {max(minutes):.1f} minutes each; run it again"
    )


def failed_cells(folder: StudyFolder, cells: Iterable[StudyCell]) -> dict[str, str]:
    """Last error of the cells that failed for good, by name."""
    files = {cell.name: folder.failure_file(cell) for cell in cells}
    return {name: read_json(file)["errors"][-1] for name, file in files.items() if file.is_file()}
