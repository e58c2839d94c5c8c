"""Fit and report of a study's folder: from the cells' records to fit.json, the report, figures and study.json."""

from pathlib import Path

from ...models.accounting import state_bytes
from ...models.common.errors import UserError
from ...models.common.files import write_json
from ..progress.bars import console
from .analysis.fit import fit_study
from .analysis.records import StudyFit
from .analysis.report import write_report
from .config import load_study
from .export import export_study
from .folder import StudyFolder, failed_cells
from .run import stored_rule
from .spending.spent import choice_of


def take_fit_options(folder: StudyFolder, file: str) -> None:
    """Store in the folder's plan what a study's file now says of its fits: question, `fit` and `evaluation.loss`.

    Nothing of it belongs to what a cell has done, so cells that have run stay as they are.

    Raises:
        UserError: the file is of another study.
    """
    study, plan = load_study(file), folder.load_plan()
    if study.name != plan.study.name:
        raise UserError(
            f"{file} is study {study.name}, {folder.path} holds {plan.study.name}: name the file of that study"
        )
    evaluation = plan.study.evaluation.model_copy(update={"loss": study.evaluation.loss})
    options = {"question": study.question, "fit": study.fit, "evaluation": evaluation}
    now = plan.study.model_copy(update=options)
    cells = tuple(
        cell.model_copy(
            update={
                "held_out": cell.size in now.held_out_sizes,
                "state_bytes": state_bytes(cell.architecture(plan.vocab_size), now.fit.state_context),
            }
        )
        for cell in plan.cells
    )
    changed = plan.model_copy(update={"study": now, "cells": cells})
    if changed != plan:
        write_json(folder.plan_file, changed.model_dump(mode="json"))


def write_fit(folder: StudyFolder) -> StudyFit:
    """Fit the finished cells and write `fit.json`.

    Raises:
        UserError: no cell is finished.
    """
    plan = folder.load_plan()
    results = folder.results(plan)
    if not results:
        raise UserError(f"no cell of {folder.path} is finished: `echo-lm study run` it first")
    fit = fit_study(plan, results)
    write_json(folder.fit_file, fit.model_dump(mode="json"))
    return fit


def fit_and_report(folder: StudyFolder) -> Path:
    """Fit and report a study, and track it in MLflow if that is installed; returns the path of `report.md`."""
    plan = folder.load_plan()
    fit = write_fit(folder)
    rule = stored_rule(folder) if folder.rule_file.is_file() else None
    choice = choice_of(folder, plan)
    left_out = choice.left_out if choice else ()
    report = write_report(
        folder.path, plan, folder.results(plan), fit, rule, failed_cells(folder, plan.cells), left_out
    )
    console.print(f"report: {report} and {report.with_suffix('.html')}; everything behind it: {export_study(folder)}")
    try:
        from .tracking import track_study

        track_study(folder)
    except ModuleNotFoundError as error:
        console.print(f"MLflow: not installed here ({error.name}); `echo-lm study track` replays the files elsewhere")
    return report
