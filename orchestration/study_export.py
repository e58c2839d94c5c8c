"""A study in one file, `study.json`: what is committed or sent, a cell a line. Enough to fit, report and go on elsewhere."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..models.errors import UserError
from ..models.files import read_json, write_json, write_text
from .studies.results import CellResult, write_result
from .study import StudyFolder, failed_cells
from .study_cell import result_file


def export_study(folder: StudyFolder) -> Path:
    """Write `study.json` beside the report: the study, its rule of learning rates, failures and cells."""
    plan = folder.load_plan()
    head = {
        "study": plan.study.name,
        "learning_rate": read_json(folder.rule_file) if folder.rule_file.is_file() else None,
        "failed": failed_cells(folder, plan.cells),
    }
    fields = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in head.items()]
    cells = [json.dumps(result.model_dump(mode="json"), allow_nan=False) for result in folder.results(plan)]
    path = folder.path / "study.json"
    write_text(path, "{" + ",\n".join([*fields, '"cells": [\n' + ",\n".join(cells) + "\n]"]) + "}\n")
    return path


def import_study(path: Path, folder: StudyFolder) -> None:
    """Put what `study.json` holds into a study's folder, where `study run` goes on and `study report` reports.

    Raises:
        UserError: the file holds no study, or another one.
    """
    content: Any = read_json(path)
    name = content.get("study") if isinstance(content, dict) else None
    if name != folder.path.name:
        found = name if isinstance(name, str) else "no study"
        raise UserError(f"{path} holds {found}, not {folder.path.name}: name the study.json of that report")
    try:
        results = [CellResult.model_validate(cell) for cell in content["cells"]]
    except (KeyError, ValidationError) as error:
        raise UserError(f"{path} does not fit this version ({type(error).__name__}): export it again") from error
    for result in results:
        file = result_file(folder.run(result.cell))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_result(file, result)
    if content["learning_rate"] is not None:
        write_json(folder.rule_file, content["learning_rate"])
    for cell, message in content["failed"].items():
        file = folder.path / "failures" / f"{cell}.json"
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"errors": [message]})
