"""Which cells fit into GPU-hours: the order, what is kept together, what a measured speed changes; by hand."""

import pytest
from typer.testing import CliRunner

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.spending.choice import Progress, choose

FLOPS = 1e12 * 3600  # of an hour at 1 TFLOP/s
SIZES = {"sizes": ["1m", "4m"], "hardware": {"memory_gib": 80, "tflops": 1.0, "startup_seconds": 1e-6}}
TWO = SIZES | {
    "families": ["echo", "transformer"],
    "budgets": {"flops": [1 * FLOPS, 4 * FLOPS]},
    "limits": {"max_epochs": 1e9},
}


@pytest.fixture
def plan(study):
    """Cells of 1 h and of 4 h of each family and size: 20 hours in all."""
    return make_plan(study(**TWO))


def names(plan, *budgets, size=("1m", "4m"), seed=0):
    labels = dict(zip((1, 4), dict.fromkeys(cell.budget for cell in plan.cells), strict=True))
    wanted = {labels[budget] for budget in budgets}
    return {cell.name for cell in plan.cells if cell.budget in wanted and cell.size in size and cell.seed == seed}


def measured(record, cell, slower):
    """A record of a cell that was so many times slower than the study assumes."""
    speed = cell.tokens * 1e12 / (slower * cell.flops)
    return record(cell, 2.0).model_copy(update={"tokens_per_second": speed, "seconds": cell.tokens / speed})


def test_the_cheapest_of_a_size_is_measured_first(plan):
    choice = choose(plan, limit=21)
    assert set(choice.kept) == names(plan, 1)
    assert set(choice.waiting) == names(plan, 4)
    assert choice.left_out == ()
    assert (choice.hours, choice.all_hours) == pytest.approx((20, 20), rel=0.01)


def test_the_costliest_go_first_and_families_stay_together(plan):
    """13 hours have room for one of the groups of 4 + 4 h, and not for the other, nor for half of it."""
    choice = choose(plan, limit=17)
    assert set(choice.kept) == names(plan, 1)
    assert len(choice.waiting) == 2
    assert {name.split("-")[0] for name in choice.waiting} == {"echo", "transformer"}
    assert set(choice.waiting) | set(choice.left_out) == names(plan, 4)
    assert choice.hours == pytest.approx(12, rel=0.01)
    assert choice.all_hours == pytest.approx(20, rel=0.01)


def test_repetitions_go_before_the_costliest(study):
    plan = make_plan(study(**TWO, seeds=[0, 1]))
    choice = choose(plan, limit=21)
    assert set(choice.kept) | set(choice.waiting) == names(plan, 1, 4)
    assert set(choice.left_out) == names(plan, 1, 4, seed=1)
    more = choose(plan, limit=23)
    assert len(set(more.waiting) & names(plan, 1, seed=1)) == 2, "a cheap repetition, where the rest has room for it"


def test_a_measured_speed_chooses_anew(plan, record):
    """The cells of 1 h took 3: 12 of 30 hours are spent, and each group of 4 h takes 24."""
    results = [measured(record, cell, 3) for cell in plan.cells if cell.name in names(plan, 1)]
    progress = Progress(ended=frozenset(result.cell.name for result in results))
    assert choose(plan, 40, results, progress, spent=12).kept != ()
    slow = choose(plan, 30, results, progress, spent=12)
    assert slow.kept == slow.waiting == ()
    assert set(slow.left_out) == names(plan, 4)
    assert slow.all_hours == pytest.approx(48, rel=0.01)
    halfway = progress.model_copy(update={"shares": dict.fromkeys(names(plan, 4), 0.5)})
    assert len(choose(plan, 30, results, halfway, spent=12).kept) == 2, "what lies in a checkpoint is not paid again"


def test_a_stretch_of_a_trunk_is_counted_once_and_for_the_cells_that_need_it(study):
    """Two budgets of 1 h and 4 h, whose cooldowns of 10% branch from one trunk.

    The first costs 0.9 h of the trunk and 0.1 h of cooldown; the second the rest of the trunk (3.6 - 0.9 h) and 0.4 h.
    """
    small = TWO | {"families": ["echo"], "sizes": ["1m"], "fit": {"hold_out": []}}
    plan = make_plan(study(**small | {"budgets": {"flops": [1 * FLOPS, 4 * FLOPS], "trunk": {}}}))
    short, long = (cell.name for cell in plan.cells)
    choice = choose(plan, limit=5)
    assert ((short,), (long,)) == (choice.kept, choice.waiting)
    assert choice.hours == pytest.approx(0.9 + 0.1 + (3.6 - 0.9) + 0.4, rel=0.01)
    assert choose(plan, limit=4).left_out == (long,)
    trained = Progress(shares={plan.trunks[0].name: 1.0})
    assert choose(plan, limit=4, progress=trained).hours == pytest.approx(0.5, rel=0.01)


def test_cells_count_the_devices_that_they_hold(study):
    shared = TWO | {"hardware": TWO["hardware"] | {"processes_per_device": 4}}
    assert choose(make_plan(study(**shared)), limit=21).all_hours == pytest.approx(5, rel=0.01)


def test_without_room_for_its_sweep_nothing_is_trained(study):
    swept = TWO | {"learning_rate": {"value": 1e-3, "sweep": {"sizes": ["1m", "4m"]}}}
    plan = make_plan(study(**swept))
    choice = choose(plan, limit=11)
    assert len(choice.left_out) == len(plan.cells)
    enough = choose(plan, limit=13)
    assert set(enough.kept) == {cell.name for cell in plan.of_kind("sweep")}, "12 cells of 1 h"


def test_plan_says_what_fits(study_file, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")

    def run(hours):
        limits = {"limits": TWO["limits"] | {"gpu_hours": hours}}
        command = [
            "study",
            "plan",
            str(study_file(**TWO | limits)),
            "--studies",
            str(tmp_path),
            "--data",
            str(tmp_path),
        ]
        return CliRunner().invoke(app, command)

    output = " ".join(run(17).output.split())
    assert (
        "limits.gpu_hours=17: 0 h of device time spent, 12 h predicted for 6 more cells; 2 cells no longer fit"
        in output
    )
    assert "(a limit of about 20 h has room for all)" in output
    assert "no longer fit" not in run(30).output
    for hours, expected in (
        (0.5, "the cheapest cells (echo-1m-"),
        (0, "limits.gpu_hours"),
        ("many", "limits.gpu_hours"),
    ):
        result = run(hours)
        assert isinstance(result.exception, UserError)
        assert expected in str(result.exception)
        assert "\n" not in str(result.exception)
