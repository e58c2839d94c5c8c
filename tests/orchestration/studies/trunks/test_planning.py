"""Plans with trunks: arithmetic by hand, what is saved, refusals in one line."""

import pytest
from typer.testing import CliRunner

from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_json
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.studies.config import load_study
from echo_lm.orchestration.studies.folder import StudyFolder
from echo_lm.orchestration.studies.learning_rate import given_rule
from echo_lm.orchestration.studies.packing import PackedCell, makespan
from echo_lm.orchestration.studies.plan import cell_config
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.preflight.checks import check_stored
from echo_lm.orchestration.studies.tables import plan_summary, status_view

UNIT = 100 * 16384  # tokens of 100 steps


@pytest.fixture
def trunks(study):
    """`trunks(units, **changes)` is a plan of one family and size with a trunk, its budgets in units of 100 steps."""

    def make(units=(1, 2, 4, 8, 16), trunk=None, **changes):
        small = {"families": ["echo"], "sizes": ["1m"], "fit": {"hold_out": []}}
        return make_plan(study(**small | changes, budgets={"tokens": [n * UNIT for n in units], "trunk": trunk or {}}))

    return make


def test_five_budgets_cost_little_more_than_the_largest(trunks):
    """The trunk has 90% of 1600 steps; cooldowns of 10, 20, 40, 80 and 160 steps follow: 1750 instead of 3100."""
    plan = trunks()
    (trunk,) = plan.trunks
    assert (trunk.name, trunk.steps, trunk.tokens) == ("echo-1m-trunk-s0", 1440, 1440 * 16384)
    assert [(cell.branch_step, cell.own_steps) for cell in plan.cells] == [
        (90, 10),
        (180, 20),
        (360, 40),
        (720, 80),
        (1440, 160),
    ]
    assert plan.branch_steps(trunk) == (90, 180, 360, 720, 1440)
    assert plan.tokens == 1750 * 16384 < 0.6 * sum(cell.tokens for cell in plan.cells)
    assert plan.flops == pytest.approx(sum(cell.flops for cell in plan.cells) * 1750 / 3100)
    assert plan.hours < 0.9 * plan.separate_hours, "on one device, with a start of 10 s for each cell"
    line = "trunks: 1, from which 5 cooldowns branch: 28,672,000 tokens instead of 50,790,400 of separate runs (56%)"
    assert line in plan_summary(plan)
    seeds = trunks(seeds=[0, 1], exclude=["*M-s1"])
    assert [trunk.name for trunk in seeds.trunks] == ["echo-1m-trunk-s0"], "no trunk without cells"


def test_trunk_and_cooldowns_have_one_rate_up_to_the_branch(trunks):
    plan = trunks(trunk={"cooldown": 0.25, "shape": "linear"})
    rule = given_rule(plan.study.learning_rate, plan.study.families)
    trunk = cell_config(plan.study, plan.trunks[0], rule).train
    assert (trunk.schedule, trunk.steps) == ("constant", 1200)
    cell = cell_config(plan.study, plan.cells[-1], rule).train
    assert (cell.schedule, cell.steps, cell.decay_steps, cell.decay_shape) == (
        "warmup-stable-decay",
        1600,
        400,
        "linear",
    )
    assert trunk.warmup_tokens == cell.warmup_tokens == 5 * 16384, "5% of the smallest budget"


def test_cells_of_the_sweep_are_trained_separately_with_the_same_schedule(trunks):
    sweep = {"value": 1e-3, "sweep": {"sizes": ["1m", "4m"]}}
    plan = trunks(units=(1, 2), sizes=["1m", "4m"], learning_rate=sweep)
    rule = given_rule(plan.study.learning_rate, plan.study.families)
    assert len(plan.trunks) == 2
    for cell in plan.of_kind("sweep"):
        assert (cell.trunk, cell.own_steps) == (None, 100)
        assert cell_config(plan.study, cell, rule).train.decay_steps == 10


def test_a_cooldown_waits_for_its_trunk_by_hand():
    """The trunk runs from 0 to 9; branches at 3 (2 s long) and 9 (4 s long) begin there, an other cell of 8 s at once."""
    branches = [PackedCell("a", 2, 1, "trunk", 3), PackedCell("b", 4, 1, "trunk", 9)]
    assert makespan([PackedCell("trunk", 9, 1), *branches], 2) == 13
    assert makespan([PackedCell("trunk", 9, 1), *branches], 1) == 15
    assert makespan([PackedCell("trunk", 9, 1), *branches, PackedCell("other", 8, 1)], 2) == 13
    assert makespan(branches, 1) == 6, "its trunk is trained"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch": {"value": 16384, "exponent": 0.5}}, "batch.exponent=0.5 gives budgets batches of their own"),
        (
            {"trunk": {"cooldown": 0.97}},
            "train.warmup_fraction=0.05 and budgets.trunk.cooldown=0.97 are more than the whole",
        ),
        ({"trunk": {"cooldown": 1}}, "budgets.trunk.cooldown"),
        ({"trunk": {"cooldowns": 0.1}}, "cooldown"),
        ({"units": (0.01, 1), "limits": {"min_steps": 1}, "trunk": {}}, "its 1 steps are all of its cooldown"),
    ],
)
def test_what_cannot_be_is_one_line(study_file, changes, expected):
    units, trunk = changes.pop("units", (1, 2)), changes.pop("trunk", {})
    file = study_file(
        budgets={"tokens": [n * UNIT for n in units], "trunk": trunk}, families=["echo"], sizes=["1m"], **changes
    )
    result = CliRunner().invoke(app, ["study", "plan", str(file)])
    assert isinstance(result.exception, UserError)
    assert expected in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_study_of_separate_runs_is_not_continued_by_trunks_nor_by_other_cooldowns(trunks, tmp_path):
    plan = trunks()
    folder = StudyFolder(tmp_path)
    write_json(folder.plan_file, plan.model_dump(mode="json"))
    check_stored(folder, trunks(units=(1, 2, 3, 4, 8, 16, 32)))
    with pytest.raises(UserError, match="with another branch_step"):
        check_stored(folder, trunks(trunk={"cooldown": 0.2}))
    with pytest.raises(UserError, match="with another warmup_tokens"):
        check_stored(folder, trunks(units=(0.5, 1, 2, 4, 8, 16)))
    budgets = plan.study.budgets.model_copy(update={"trunk": None})
    with pytest.raises(UserError, match="with another"):
        check_stored(folder, make_plan(plan.study.model_copy(update={"budgets": budgets})))


def test_a_trunk_that_no_cell_needs_within_the_gpu_hours_is_done(trunks, tmp_path):
    folder, limits = StudyFolder(tmp_path), {"max_epochs": 1e9}
    for hours, states in ((1e-9, ["done", "left out", "left out"]), (1e9, ["waiting"] * 3)):
        plan = trunks(units=(1, 2), limits=limits | {"gpu_hours": hours})
        write_json(folder.plan_file, plan.model_dump(mode="json"))
        assert list(status_view(folder)[0].renderables[0].columns[1].cells) == states


def test_a_study_without_trunks_is_stored_as_before(study):
    assert "trunk" not in study().model_dump(mode="json")["budgets"]
    assert load_study("study-pocket").budgets.trunk is None
