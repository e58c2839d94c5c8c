"""Checks of a study before it costs anything: its loss is measured, and the records in its folder are of the same study."""

from ....evals.config import Suite, load_suite
from ....models.common.errors import UserError
from ....models.common.validation import first_difference
from ..config import StudyConfig
from ..folder import StudyFolder
from ..learning_rate import given_rule
from ..plan import Plan, cell_config
from ..results import CellResult

# These may change, since they do not affect the result of a cell.
CHANGEABLE = {"seconds", "per_device", "devices", "memory_gib", "held_out", "epochs", "state_bytes"}
# Names after `language/` or `language/SOURCE/` (evals/measurements/language.py).
LANGUAGE_METRICS = ("bits_per_byte", "perplexity", "unigram_bits_per_byte", "gzip_bits_per_byte", "tokens")


def check_loss(study: StudyConfig) -> None:
    """Refuse a study whose loss is measured by none of its suites, or by several.

    Two suites measure different held-out text in different contexts under one name.

    Raises:
        UserError: it is so, or a suite does not exist.
    """
    suites = [load_suite(name) for name in study.evaluation.suites]
    names = [suite.name for suite in suites]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"study {study.name}: evaluation.suites holds {repeated} twice: name each suite once")
    loss = study.evaluation.loss
    measuring = [suite.name for suite in suites if _measures(suite, loss)]
    if not measuring:
        raise UserError(
            f"study {study.name}: evaluation.loss={loss!r} is measured by none of evaluation.suites ({', '.join(names)}); "
            "a loss is, for example, language/bits_per_byte of the suite language"
        )
    if len(measuring) > 1:
        raise UserError(
            f"study {study.name}: evaluation.loss={loss!r} is measured by {' and '.join(measuring)}, each on held-out text of "
            "its own: leave one of these suites out"
        )


def _measures(suite: Suite, metric: str) -> bool:
    """Whether a suite measures a metric, as far as that is known without a model."""
    protocol, _, rest = metric.partition("/")
    if protocol not in suite.protocols or not rest:
        return False
    return protocol != "language" or rest.rpartition("/")[2] in LANGUAGE_METRICS


def check_stored(folder: StudyFolder, plan: Plan) -> None:
    """Refuse to go on with a folder whose plan or records belong to another study; writes nothing.

    Raises:
        UserError: a stored cell is missing from `plan` or has changed, was trained with another configuration, or was measured
            by other suites.
    """
    if not folder.plan_file.is_file():
        return
    stored = folder.load_plan()
    _check_cells(folder, stored, plan)
    results = folder.results(plan)
    for result in results:
        _check_suites(folder, stored, plan, result)
    if (
        plan.study.learning_rate.sweep is None
    ):  # with a sweep the rate of a main cell is only known after it; `CellJob.is_done` then checks it
        rule = given_rule(plan.study.learning_rate, plan.study.families)
        cells = {cell.name: cell for cell in plan.cells}
        for result in results:
            if result.identity != cell_config(plan.study, cells[result.cell.name], rule).identity():
                raise UserError(
                    f"{folder.run(result.cell)} was trained with another configuration than the study now asks for: "
                    "name the changed study anew, or move that folder away"
                )


def _check_cells(folder: StudyFolder, stored: Plan, plan: Plan) -> None:
    new = {cell.name: cell for cell in plan.cells}
    for old in stored.cells:
        if old.name not in new:
            raise UserError(
                f"{folder.path} holds cell {old.name}, which the study no longer plans: put it back, or name the study anew"
            )
        difference = first_difference(
            old.model_dump(mode="json", exclude=CHANGEABLE), new[old.name].model_dump(mode="json", exclude=CHANGEABLE)
        )
        if difference:
            field, before, after = difference
            raise UserError(
                f"{folder.path} holds cell {old.name} with another {field} (stored {before!r}, asked {after!r}): "
                "name the study anew"
            )


def _check_suites(folder: StudyFolder, stored: Plan, plan: Plan, result: CellResult) -> None:
    asked = {suite.name: suite.sha256 for suite in map(load_suite, plan.study.evaluation.suites)}
    measured: dict[str, str | None] = dict(result.suites)
    if (
        not measured
    ):  # a record of an earlier version: by the suites of the plan it was made for, whose contents it does not say
        measured = {name: asked.get(name) for name in (load_suite(s).name for s in stored.study.evaluation.suites)}
    if measured != asked:
        changed = sorted(name for name in asked if name in measured and measured[name] != asked[name])
        what = f"{', '.join(changed)} as it was before it changed" if changed else ", ".join(measured) or "nothing"
        raise UserError(
            f"{folder.path}: cell {result.cell.name} was measured by {what}, the study now asks for {', '.join(asked)}: put the "
            f"suites back, name the study anew, or remove {folder.run(result.cell) / 'cell.json'} of every cell to measure it "
            "again (its training is kept)"
        )
