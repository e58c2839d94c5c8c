"""Export of a study into one file, `study.json`, a cell per line: enough to report it, or to continue it elsewhere."""

import json
from pathlib import Path

from pydantic import ValidationError

from ...models.common.config import Record
from ...models.common.errors import UserError
from ...models.common.files import read_json, write_json, write_text
from .cell import result_file
from .folder import StudyFolder, failed_cells
from .learning_rate import LearningRateRule
from .plan import Plan
from .results import CellResult, write_result


class ExportedStudy(Record):
    """The contents of `study.json`.

    Attributes:
        plan: the study and its cells.
        learning_rate: the rule of the main cells; None before the sweep is finished.
        failed: last error of the cells that failed for good.
        results: of the finished cells.
    """

    plan: Plan
    learning_rate: LearningRateRule | None
    failed: dict[str, str]
    results: tuple[CellResult, ...]


def export_study(folder: StudyFolder) -> Path:
    """Write `study.json` into the study's folder; returns its path."""
    plan = folder.load_plan()
    head = {
        "plan": plan.model_dump(mode="json"),
        "learning_rate": read_json(folder.rule_file) if folder.rule_file.is_file() else None,
        "failed": failed_cells(folder, plan.cells),
    }
    fields = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in head.items()]
    results = [json.dumps(result.model_dump(mode="json"), allow_nan=False) for result in folder.results(plan)]
    path = folder.path / "study.json"
    write_text(path, "{" + ",\n".join([*fields, '"results": [\n' + ",\n".join(results) + "\n]"]) + "}\n")
    return path


def import_study(path: Path, folder: StudyFolder) -> None:
    """Restore a study's folder from `study.json`, for `study report` and `study run`.

    Raises:
        UserError: the file holds no study, or another one.
    """
    try:
        study = ExportedStudy.model_validate(read_json(path))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "its top"
        raise UserError(f"{path} is no study.json of this version (at {where}): name the one of a report") from error
    plan = study.plan
    if plan.study.name != folder.path.name:
        raise UserError(f"{path} holds {plan.study.name}, not {folder.path.name}: name the study.json of that report")
    cells = {cell.name: cell for cell in plan.cells}
    if unknown := ({result.cell.name for result in study.results} | set(study.failed)) - set(cells):
        raise UserError(f"{path} holds cell {min(unknown)}, which its plan has not: export the study again")
    write_json(folder.plan_file, plan.model_dump(mode="json"))
    for result in study.results:
        write_result(result_file(folder.run(result.cell)), result)
    if study.learning_rate is not None:
        write_json(folder.rule_file, study.learning_rate.model_dump(mode="json"))
    for name, message in study.failed.items():
        write_json(folder.failure_file(cells[name]), {"errors": [message]})
