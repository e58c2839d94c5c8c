"""The folder of a study: its files, and which of its cells are done, failed, or left."""

from collections.abc import Container, Iterable
from pathlib import Path

from pydantic import ValidationError

from ...evals.layout import complete_checkpoints
from ...models.common.errors import UserError
from ...models.common.files import read_json
from ...pipeline.run.folder import RunFolder
from .cell import result_file
from .config import StudyConfig, load_study
from .plan import Plan, StudyCell
from .results import CellResult, Pace, read_result


class StudyFolder:
    """Paths of a study below `path`. Making the object touches nothing."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.plan_file = self.path / "plan.json"
        self.rule_file = self.path / "learning_rate.json"
        self.fit_file = self.path / "fit.json"
        self.spending_file = self.path / "spending.json"
        self.runs = self.path / "runs"

    def run(self, cell: StudyCell) -> Path:
        """The run folder of a cell or trunk."""
        return self.runs / cell.name

    def trunk_of(self, cell: StudyCell) -> Path | None:
        """The run folder of the trunk that a cell branches from; None if it has no trunk."""
        return None if cell.trunk is None else self.runs / cell.trunk

    def failure_file(self, cell: StudyCell) -> Path:
        """The file of a cell whose last attempt failed for good."""
        return self.failure_file_of(cell.name)

    def failure_file_of(self, name: str) -> Path:
        """The file of a cell or trunk of that name, if its last attempt failed for good."""
        return self.path / "failures" / f"{name}.json"

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


def study_to_run(study: str, studies: Path) -> StudyConfig:
    """Load the study of a file or name, with the version of presets that its folder was begun with if the file names none.

    Raises:
        UserError: as `load_study`, or the plan in the folder does not fit this version.
    """
    loaded = load_study(study)
    folder = StudyFolder(studies / loaded.name)
    if not folder.plan_file.is_file():
        return loaded
    return load_study(study, preset_version=folder.load_plan().study.preset_version)


def trained_share(folder: StudyFolder, cell: StudyCell) -> float:
    """The share of the cell's training in its last checkpoint, 0 to 1."""
    steps = [record["step"] for _, record in complete_checkpoints(folder.run(cell))]
    return max(0, max(steps, default=0) - cell.branch_step) / cell.own_steps


def remaining_cells(folder: StudyFolder, plan: Plan) -> list[StudyCell]:
    """Cells that are neither done nor failed."""
    finished, failed = {result.cell.name for result in folder.results(plan)}, failed_cells(folder, plan.cells)
    return [cell for cell in plan.cells if cell.name not in finished and cell.name not in failed]


def describe_remaining(folder: StudyFolder, plan: Plan, left_out: Container[str] = ()) -> str:
    """A line with the number of remaining cells and their predicted minutes; empty if none remain.

    Args:
        left_out: names of cells that the study has no GPU-hours for, which do not count.
    """
    remaining = [cell for cell in remaining_cells(folder, plan) if cell.name not in left_out]
    if not remaining:
        return ""
    pace = Pace(plan.study, folder.results(plan))
    minutes = [pace(cell, trained_share(folder, cell)) / 60 for cell in remaining]
    return (
        f"{len(remaining)} of {len(plan.cells)} cells are left, for lack of time, after a stop, or because somebody else "
        f"has them: they take about {min(minutes):.1f} to {max(minutes):.1f} minutes each; run it again"
    )


def failed_cells(folder: StudyFolder, cells: Iterable[StudyCell]) -> dict[str, str]:
    """Last error of the cells that failed for good, by name; a cell whose trunk failed before it could begin has failed too."""
    failed = {}
    for cell in cells:
        trunk_failure = (
            folder.failure_file_of(cell.trunk) if cell.trunk and not RunFolder(folder.run(cell)).exists() else None
        )
        if folder.failure_file(cell).is_file():
            failed[cell.name] = read_json(folder.failure_file(cell))["errors"][-1]
        elif trunk_failure and trunk_failure.is_file() and not result_file(folder.run(cell)).is_file():
            failed[cell.name] = f"its trunk {cell.trunk} failed: {read_json(trunk_failure)['errors'][-1]}"
    return failed
