"""What is refused before anything is paid: each fault that was found, and a neighbour of it."""

import json

import pytest
from typer.testing import CliRunner

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.studies.cell import result_file
from echo_lm.orchestration.studies.config import load_study
from echo_lm.orchestration.studies.folder import StudyFolder
from echo_lm.orchestration.studies.learning_rate import given_rule
from echo_lm.orchestration.studies.plan import cell_config
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.preflight.checks import check_loss, check_stored
from echo_lm.orchestration.studies.reporting import take_fit_options
from echo_lm.orchestration.studies.results import write_result

SUITE = "name: text\nlanguage: {tokens: %d, sequence_length: 256}\n"


@pytest.fixture
def stored(study, record, tmp_path):
    """`stored(suites=..., measured=..., ...)` is a study's folder with one finished cell, and its plan."""

    def make(measured: dict[str, str], **changes):
        plan = make_plan(study(**changes))
        folder, cell = StudyFolder(tmp_path / "toy"), plan.cells[0]
        folder.path.mkdir(exist_ok=True)
        folder.plan_file.write_text(json.dumps(plan.model_dump(mode="json")))
        identity = cell_config(plan.study, cell, given_rule(plan.study.learning_rate, plan.study.families)).identity()
        result = record(cell, 2.0).model_copy(update={"suites": measured, "identity": identity})
        write_result(result_file(folder.run(cell)), result)
        return folder, plan

    return make


def hashes(study):
    from echo_lm.evals.config import load_suite

    return {suite.name: suite.sha256 for suite in map(load_suite, study.evaluation.suites)}


def test_records_of_other_suites_are_refused_and_the_plan_stays(stored, study):
    before = study(evaluation={"suites": ["language"]})
    folder, _ = stored(hashes(before), evaluation={"suites": ["language"]})
    check_stored(folder, make_plan(before))
    written = folder.plan_file.read_bytes()
    with pytest.raises(UserError, match=r"cell echo-1m-10M-s0 was measured by language, the study now asks for pocket"):
        check_stored(
            folder, make_plan(study(evaluation={"suites": ["pocket"]}, budgets={"tokens": [1e7, 3e7, 9e7, 2e8]}))
        )
    assert folder.plan_file.read_bytes() == written


def test_a_record_that_does_not_name_its_suites_was_measured_by_those_of_its_plan(stored, study):
    folder, plan = stored({}, evaluation={"suites": ["language"]})
    check_stored(folder, plan)
    with pytest.raises(UserError, match="was measured by language, the study now asks for pocket"):
        check_stored(folder, make_plan(study(evaluation={"suites": ["pocket"]})))


def test_a_suite_whose_sample_changed_under_its_name_is_another_suite(stored, study, tmp_path):
    file = tmp_path / "text.yaml"
    file.write_text(SUITE % 65536)
    changes = {"evaluation": {"suites": [str(file)]}}
    folder, plan = stored(hashes(study(**changes)), **changes)
    check_stored(folder, plan)
    file.write_text(SUITE % 32768)
    with pytest.raises(UserError, match="was measured by text as it was before it changed"):
        check_stored(folder, plan)


def test_a_folder_of_another_rate_is_refused_before_its_plan_is_overwritten(stored, study):
    folder, plan = stored({}, evaluation={"suites": ["language"]})
    with pytest.raises(UserError, match="trained with another configuration"):
        check_stored(folder, make_plan(study(learning_rate={"value": 1e-3}, evaluation={"suites": ["language"]})))
    with pytest.raises(UserError, match="no longer plans"):
        check_stored(folder, make_plan(study(budgets={"tokens": [1e7]})))
    assert folder.load_plan() == plan


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"suites": ["language"], "loss": "language/bits"}, r"measured by none of evaluation.suites \(language\)"),
        ({"suites": ["recall-quick"]}, "measured by none of evaluation.suites"),
        ({"suites": ["language", "pocket"]}, "measured by language and pocket, each on held-out text of its own"),
        ({"suites": ["language", "language"]}, "evaluation.suites holds language twice"),
    ],
)
def test_a_loss_that_is_not_measured_once_is_refused(study, evaluation, message):
    with pytest.raises(UserError, match=message):
        check_loss(study(evaluation=evaluation))


@pytest.mark.parametrize(
    "evaluation",
    [
        {"loss": "language/perplexity"},
        {"loss": "language/linux/bits_per_byte"},
        {"suites": ["language", "recall-quick"]},
    ],
)
def test_a_loss_that_is_measured_once_is_taken(study, evaluation):
    check_loss(study(evaluation=evaluation))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 0]}, "seeds gives 0 twice"),
        ({"families": ["echo", "echo"]}, "families gives echo twice"),
        ({"budgets": {"tokens": [1e7, 3e7, 1e7]}}, r"budgets.tokens gives 10M twice"),
        ({"budgets": {"flops": [1e16, 1.0001e16]}}, r"budgets.flops gives 1e16F twice"),
        (
            {"learning_rate": {"value": 1e-3, "sweep": {"sizes": ["1m", "4m"], "factors": [1, 2, 2.0000001]}}},
            "learning_rate.sweep.factors gives 2 twice",
        ),
        ({"fit": {"hold_out": ["50m", "50m"]}}, "fit.hold_out gives 50m twice"),
        ({"exclude": ["ecko-1m-*"]}, "'ecko-1m-\\*' is the name of no cell; names are like echo-1m-10M-s0"),
    ],
)
def test_cells_of_one_name_are_refused(study, changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(study(**changes))


def test_errors_name_family_and_size(study):
    with pytest.raises(UserError, match="family echo at size odd"):
        make_plan(study(sizes={"odd": {"preset": "1m", "model": {"d_model": -3}}}))
    sizes = {"odd": {"preset": "1m", "model": {"d_model": 64, "ska": {"rank": 16}}, "feedforward_width": 64}}
    with pytest.raises(UserError, match="family transformer at size odd"):
        make_plan(study(sizes=sizes))


def test_a_study_is_run_by_its_folder_too(stored):
    folder, plan = stored({})
    assert load_study(folder.path) == plan.study
    folder.plan_file.write_text("{}")
    with pytest.raises(UserError, match="does not fit this version: name the study's file instead"):
        load_study(folder.path)
    result = CliRunner().invoke(app, ["study", "plan", str(folder.path / "runs")])
    assert "name a .yaml file, or the folder of a study that was run" in str(result.exception)


def test_a_file_given_to_fit_says_what_is_held_out_now(stored, study_file, study):
    folder, plan = stored({})
    take_fit_options(folder, str(study_file(fit={"hold_out": ["1m"], "state_context": 4096})))
    later = folder.load_plan()
    assert {cell.size for cell in later.cells if cell.held_out} == {"1m"}
    assert later.cells == make_plan(study(fit={"hold_out": ["1m"], "state_context": 4096})).cells
    assert {cell.size for cell in plan.cells if cell.held_out} == {"50m"}
    with pytest.raises(UserError, match="is study other, .* holds toy"):
        take_fit_options(folder, str(study_file(name="other")))
