"""A study with a trunk really run: killed and run again, extended, and beside separate runs of the same cells."""

import json

import pytest
import yaml

from echo_lm.orchestration.studies import run as study_module
from echo_lm.orchestration.studies.analysis.sections import rules
from echo_lm.orchestration.studies.cell import CellJob
from echo_lm.orchestration.studies.config import StudyConfig
from echo_lm.orchestration.studies.folder import StudyFolder, failed_cells
from echo_lm.orchestration.studies.learning_rate import given_rule
from echo_lm.orchestration.studies.plan import cell_config
from echo_lm.orchestration.studies.run import run_study
from echo_lm.orchestration.studies.tables import status_view
from echo_lm.orchestration.studies.trunks.job import TrunkJob
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.lineage import read_lineage
from tests.helpers.one_process import OneProcess
from tests.orchestration.studies.conftest import STUDY

TRUNK = "transformer-xs-trunk-s0"


@pytest.fixture(scope="module")
def ran(tmp_path_factory, data_root):
    """A study of budgets of 10, 20 and 40 steps, whose process was killed in step 25 of the trunk; then one of 15 and 60 more.

    And beside it every cell trained alone, from its first step on.
    """
    root = tmp_path_factory.mktemp("trunks")
    (root / "data").mkdir()
    (root / "data" / "python-stdlib-sample").symlink_to(data_root / "python-stdlib-sample")
    suite = root / "few.yaml"
    suite.write_text("name: few\nlanguage: {tokens: 2048, sequence_length: 64}\n")

    def study(*budgets):
        changes = {
            "families": ["transformer"],
            "sizes": {"xs": {"preset": "1m", "model": {"d_model": 32}, "feedforward_width": 64}},
            "budgets": {"tokens": [512 * budget for budget in budgets], "trunk": {}},
            "batch": {"value": 512},
            "evaluation": {"suites": [str(suite)]},
            "hardware": {"memory_gib": 4, "tflops": 0.001, "startup_seconds": 1},
            "limits": {"min_steps": 4},
            "fit": {"hold_out": [], "bootstrap": 100},
        }
        return StudyConfig.model_validate(yaml.safe_load(STUDY) | changes)

    patch = pytest.MonkeyPatch()
    killed, executor = OneProcess(TRUNK, 25), OneProcess()

    def run(executor, *budgets):
        patch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
        return run_study(study(*budgets), root / "studies", root / "data")

    with pytest.raises(EOFError):
        run(killed, 10, 20, 40)
    run(executor, 10, 20, 40)
    folder = run(executor, 10, 15, 20, 40, 60)
    started = [*killed.started, *executor.started]
    plan, separate = folder.load_plan(), StudyFolder(root / "separate")
    rule = given_rule(plan.study.learning_rate, plan.study.families)
    for cell in plan.cells:
        config, data = cell_config(plan.study, cell, rule), root / "data" / "python-stdlib-sample"
        executor.start(CellJob(plan, cell, config, separate.run(cell), data, separate.failure_file(cell)))
        while not (ended := executor.collect_ended()):
            pass
        assert ended[0].error is None, ended[0].error
    trunk, branches = plan.trunks[0], tuple((cell, separate.path / "none" / cell.name) for cell in plan.cells)
    for step in (9, 18):  # as if GPU-hours had room for the first budget, then for three
        job = TrunkJob(
            plan,
            trunk,
            cell_config(plan.study, trunk, rule),
            separate.run(trunk),
            data,
            separate.path / "-",
            branches,
            step,
        )
        assert not job.is_done()
        executor.start(job)
        while not (ended := executor.collect_ended()):
            pass
        assert ended[0].error is None, ended[0].error
        assert job.is_done()
    executor.close()
    patch.undo()
    return folder, separate, started


def trained(folder, name):
    return [event["step"] for event in read_events(folder.runs / name / "events.jsonl") if event["kind"] == "step"]


def test_the_table_is_that_of_separate_runs(ran):
    folder, separate, _ = ran
    plan = folder.load_plan()
    branched, alone = folder.results(plan), separate.results(plan)
    assert [result.loss for result in branched] == [result.loss for result in alone], "bit for bit"
    assert [result.identity for result in branched] == [result.identity for result in alone]
    assert len({result.loss for result in branched}) == 5


def test_a_killed_study_goes_on_and_trains_nothing_twice(ran):
    """The killed trunk had its checkpoint of step 18 and repeats 19 to 25; cells train what their trunk has not."""
    folder, _, started = ran
    assert started[0] == f"trunk {TRUNK}"
    assert started.count(f"trunk {TRUNK}") == 3, "killed, gone on, extended"
    assert len(started) == len(set(started)) + 2
    seen = trained(folder, TRUNK)
    assert sorted(set(seen)) == list(range(1, 55))
    repeated = {step for step in seen if seen.count(step) > 1}
    assert repeated <= set(range(10, 26))
    cells = {cell.budget: cell for cell in folder.load_plan().cells}
    own = {budget: trained(folder, cell.name) for budget, cell in cells.items()}
    assert own["5.12k"] == [10]
    assert own["20.48k"] == [37, 38, 39, 40]
    assert own["7.68k"] == list(range(10, 16)), "added later: it branches at 13, from the checkpoint before"


def test_a_trunk_is_trained_as_far_as_gpu_hours_allow_and_on_with_more(ran):
    """Its checkpoints for cells beyond are not there yet; what it has is that of the trunk without a limit."""
    folder, separate, _ = ran
    assert trained(separate, TRUNK) == list(range(1, 19))
    limited, whole = (steps(read_events(f.runs / TRUNK / "events.jsonl")) for f in (separate, folder))
    assert [event["loss"] for event in limited] == [event["loss"] for event in whole][:18]


def test_records_name_the_trunk(ran):
    folder, _, _ = ran
    plan = folder.load_plan()
    for result in folder.results(plan):
        parent = read_lineage(folder.run(result.cell)).parent
        assert (result.cell.trunk, parent.run) == (TRUNK, TRUNK)
        assert parent.content == result.trunk_content
        assert result.seconds > 0
    amendments = [e for e in read_events(folder.runs / TRUNK / "events.jsonl") if e["kind"] == "amend"]
    assert [event["changes"] for event in amendments] == [{"train.steps": [36, 54]}]
    assert "- trunks: 1, at a constant rate" in rules(plan, None)
    view, left = status_view(folder)
    assert left == 0
    assert next(iter(view.renderables[0].columns[0].cells)) == TRUNK
    assert next(iter(view.renderables[0].columns[1].cells)) == "done"


def test_a_cell_whose_trunk_failed_has_failed(ran, tmp_path):
    folder, _, _ = ran
    plan, empty = folder.load_plan(), StudyFolder(tmp_path)
    empty.failure_file(plan.trunks[0]).parent.mkdir(parents=True)
    empty.failure_file(plan.trunks[0]).write_text(json.dumps({"errors": ["out of luck"]}))
    failed = failed_cells(empty, plan.cells)
    assert set(failed) == {cell.name for cell in plan.cells}
    assert set(failed.values()) == {f"its trunk {TRUNK} failed: out of luck"}
