"""Running a study: start its cells on free devices, retry failures, list remaining cells. All state is in files.

Any number of supervisors, on any number of machines that share the folder, may run one study: each cell is claimed by a lease.
"""

import math
import time
from collections.abc import Container
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from ...data_prep.loading.dataset import Dataset
from ...models.common.errors import UserError
from ...models.common.files import read_json, write_json
from ...pipeline.stop_signal import StopSignal
from ..jobs.executors import Executor, ProcessExecutor
from ..jobs.job import Job
from ..jobs.ray_executor import RayExecutor
from ..jobs.scheduler import Scheduler
from ..preparation.executors import ray_data_map
from ..preparation.prepare import dataset_is_complete, prepare_dataset
from ..progress.bars import stage
from .archive import pack
from .cell import CellJob, StudyJob
from .config import StudyConfig
from .folder import StudyFolder, failed_cells, remaining_cells, trained_share
from .learning_rate import LearningRateRule, fitted_rule, given_rule
from .packing import longest_first
from .plan import Plan, StudyCell, cell_config, to_pack
from .planner import make_plan
from .preflight.checks import check_loss, check_stored
from .results import Pace
from .spending.running import Allowance
from .spending.spent import choice_of, refuse_unaffordable
from .trunks.branching import needed_step
from .trunks.job import TrunkJob


def plan_study(study: StudyConfig, data: Path) -> Plan:
    """Plan a study, with epochs if its data is prepared.

    Raises:
        UserError: an impossible cell, a suite that does not exist, or a loss that no suite measures or that several do.
    """
    check_loss(study)
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
    archive: Path | None = None,
) -> StudyFolder:
    """Prepare the data and run every cell without a record; resumes an interrupted study.

    Args:
        seconds: start no cell that is predicted to end later than that from now (`Pace`), and stop what runs then; the others
            remain for the next call (`remaining_cells`). Not with Ray.
        archive: file that gets the finished cells after each of them (`archive.pack`).

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
        check_stored(folder, plan)  # before the plan is written: a refused study leaves its folder as it was
        refuse_unaffordable(choice_of(folder, plan), plan)
        write_json(folder.plan_file, plan.model_dump(mode="json"))
        hardware = study.hardware
        if use_ray:
            _refuse_too_small_nodes(plan)
        allowance = None if study.limits.gpu_hours is None else Allowance(folder, plan)
        executor = RayExecutor() if use_ray else ProcessExecutor(hardware.devices, gpus=hardware.device == "cuda")
        with StopSignal() as stop, executor:
            rule = given_rule(study.learning_rate, study.families)
            sweep = plan.of_kind("sweep")
            if folder.rule_file.is_file():  # cells were trained with it: failed sweep cells must not change it any more
                failed = failed_cells(folder, sweep)
                sweep = [cell for cell in sweep if cell.name not in failed]
            _run_cells(_Cells(folder, plan, sweep, rule, dataset, allowance), executor, until, archive, stop)
            if not any(cell.kind == "sweep" for cell in remaining_cells(folder, plan)):
                swept = study.learning_rate.sweep is not None and folder.rule_file.is_file()
                rule = stored_rule(folder) if swept else learning_rates(folder, plan)
                if not folder.rule_file.is_file():
                    write_json(folder.rule_file, rule.model_dump(mode="json"))
                main = _Cells(folder, plan, plan.of_kind("main"), rule, dataset, allowance)
                _run_cells(main, executor, until, archive, stop)
    if failed := failed_cells(folder, plan.cells):
        name, reason = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(plan.cells)} cells failed, first {name}: {reason} (see {folder.path / 'logs'}); the same "
            "command tries them again, but for those of a sweep whose rule others train by; `echo-lm study report` goes "
            "without them"
        )
    return folder


def _refuse_too_small_nodes(plan: Plan) -> None:
    """Refuse cells on several devices that no machine of the connected Ray cluster has: Ray would wait for one.

    Raises:
        UserError: so it is.
    """
    import ray

    resource = "GPU" if plan.study.hardware.device == "cuda" else "CPU"
    largest = max((node["Resources"].get(resource, 0) for node in ray.nodes() if node["Alive"]), default=0)
    widest = max(plan.cells, key=lambda cell: cell.devices)
    if widest.devices > max(1, largest):
        raise UserError(
            f"cell {widest.name} takes hardware.devices_per_cell={widest.devices} of one machine, the largest of the Ray cluster "
            f"has {largest:g} {resource}s: take fewer"
        )


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


class _Cells:
    """The cells of one kind as jobs, those that take longest first, after the trunks that they branch from.

    Args:
        allowance: of the study's GPU-hours; with it those cells alone that fit, in its order.

    Raises:
        UserError: a cell has the record of another configuration.
    """

    def __init__(
        self,
        folder: StudyFolder,
        plan: Plan,
        cells: list[StudyCell],
        rule: LearningRateRule,
        dataset: Path,
        allowance: Allowance | None = None,
    ):
        self.folder, self.plan, self.allowance = folder, plan, allowance
        by_name = {cell.name: cell for cell in cells}
        trunks = {cell.name: cell for cell in plan.trunks if any(cell.name == branch.trunk for branch in cells)}

        def job(name: str) -> StudyJob:
            cell = by_name.get(name) or trunks[name]
            config = cell_config(plan.study, cell, rule)
            shared = (plan, cell, config, folder.run(cell), dataset, folder.failure_file(cell))
            if cell.kind == "trunk":
                return TrunkJob(
                    *shared, tuple((branch, folder.run(branch)) for branch in cells if branch.trunk == name)
                )
            return CellJob(*shared, folder.trunk_of(cell))

        jobs = [job(packed.name) for packed in longest_first(to_pack([*trunks.values(), *cells]))]
        self.trunks = [job for job in jobs if isinstance(job, TrunkJob)]
        self.jobs = [job for job in jobs if isinstance(job, CellJob)]
        self._pace, self._measured = Pace(plan.study, ()), -1

    def left(self) -> list[CellJob]:
        """Jobs of the cells without a record."""
        return [job for job in self.jobs if not job.is_done()]

    def due(self) -> list[StudyJob]:
        """Jobs that can start now: trunks that are needed, and cells without a record that wait for no trunk."""
        trunks, cells = self.trunks, self.left()
        if self.allowance is not None:
            kept = self.allowance.kept()
            cells = sorted((job for job in cells if job.cell.name in kept), key=lambda job: kept.index(job.cell.name))
            trunks = [replace(trunk, last_step=needed_step(_branches(trunk, kept))) for trunk in trunks]
        return [
            *(trunk for trunk in trunks if not trunk.is_done()),
            *(job for job in cells if job.can_begin()),
        ]

    def seconds(self, job: Job) -> float:
        """Predicted seconds of a job, from the finished cells and from its last checkpoint; of a trunk, to its next branch."""
        assert isinstance(job, StudyJob)
        results = self.folder.results(self.plan)
        if len(results) != self._measured:
            self._pace, self._measured = Pace(self.plan.study, results), len(results)
        if isinstance(job, TrunkJob):
            return self._pace(job.cell, 1 - job.share_to_next_branch())
        return self._pace(job.cell, trained_share(self.folder, job.cell))


def _branches(trunk: TrunkJob, names: Container[str]) -> list[tuple[StudyCell, Path]]:
    """The cells among `names` that branch from the trunk."""
    return [(cell, run) for cell, run in trunk.branches if cell.name in names]


def _run_cells(cells: _Cells, executor: Executor, until: float, archive: Path | None, stop: StopSignal) -> None:
    """Run the cells that have no record and would end before `until` (monotonic seconds) and within the study's GPU-hours, or until
    a stop signal.
    """
    unfinished = len(cells.left())
    if not unfinished:
        return
    total, packed = len(cells.jobs), -1
    attempts, allowance = cells.plan.study.attempts, cells.allowance
    scheduler = Scheduler(cells.due, executor, attempts=attempts, until=until, seconds=cells.seconds)
    with stage("cells", total=total, unit="cells", done=total - unfinished) as progress:

        def show() -> None:
            nonlocal packed
            done = total - len(cells.left())
            running = sorted(job.cell.name for job in scheduler.running if isinstance(job, StudyJob))
            progress.update(done, note=" ".join(running))
            if archive is not None and done != packed:
                pack(cells.folder, archive)
                packed = done

        scheduler.run(show, lambda: stop.received or (allowance is not None and allowance.used_up()))
        show()
