"""What `study plan` says of a design before it is paid for."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.preflight import design as design_module
from echo_lm.orchestration.studies.preflight.design import describe_designs, designs, plan_warnings

FREE = {"max_epochs": 1e9}


@pytest.fixture(autouse=True)
def few_simulations(monkeypatch):
    monkeypatch.setattr(design_module, "SIMULATIONS", 4)


def test_a_grid_has_narrow_intervals_and_no_warning(study):
    (design,) = designs(make_plan(study()))
    assert design.families == ("echo", "transformer"), "matched in parameters: one design"
    assert (design.cells, design.sizes, design.budgets, design.rank) == (12, 4, 3, 5)
    assert design.problems == ()
    assert 0.05 < design.widths["alpha"] < 0.25
    assert 0.005 < design.prediction < 0.05
    (twice,) = designs(make_plan(study(fit={"expected_noise": 0.02})))
    assert twice.widths["alpha"] > 2 * design.widths["alpha"]


def test_three_sizes_with_one_held_out_give_no_law(study):
    """The example of the documentation was priced without a word."""
    plan = make_plan(study(sizes=["1m", "4m", "10m"], families=["echo"]))
    (design,) = designs(plan)
    assert design.problems == (
        "no loss law: 2 sizes do not tell a power law from a constant: three at least (held out: 10m)",
    )
    assert plan_warnings(plan) == [f"echo: {design.problems[0]}"]
    assert any("WARNING: no loss law" in line for line in describe_designs(plan))
    assert plan_warnings(make_plan(study())) == []


def test_excluded_cells_count_and_too_few_are_named_by_family(study):
    plan = make_plan(study(exclude=["echo-*-30M-*"]))
    assert plan_warnings(plan) == [
        "echo: no loss law: 2 token budgets do not tell a power law from a constant: three at least (held out: 50m)"
    ]
    assert [design.families for design in designs(plan)] == [("echo",), ("transformer",)]


def test_one_ray_is_warned_of_and_another_ray_worth_adding(study):
    sizes = ["1m", "4m", "10m", "25m", "50m", "180m", "370m", "880m"]
    hardware = {"memory_gib": 1000, "tflops": 1.0}
    plan = make_plan(
        study(
            budgets={"tokens_per_parameter": [20]},
            sizes=sizes,
            families=["transformer"],
            limits=FREE,
            hardware=hardware,
        )
    )
    (design,) = designs(plan)
    assert "alpha and beta are not told apart" in design.problems[0]
    assert len(design.add) == 2
    grid = make_plan(study(families=["transformer"]))
    assert design.condition > 1.2 * designs(grid)[0].condition


@pytest.mark.parametrize(("sizes", "expected"), [(3, False), (5, True)])
def test_isoflop_studies_have_an_interval_from_four_sizes(study, sizes, expected):
    names = ["1m", "4m", "10m", "25m", "50m"][:sizes]
    changes = {"budgets": {"flops": [1e15, 3e15, 1e16]}, "sizes": names, "families": ["transformer"], "limits": FREE}
    (design,) = designs(make_plan(study(**changes, fit={"hold_out": [], "expected_noise": 0.0005})))
    assert (design.best_size is not None) == expected


def test_the_command_says_it(study_file, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "300")
    file = study_file(sizes=["1m", "4m", "10m"], families=["echo"])
    result = CliRunner().invoke(app, ["study", "plan", str(file), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    assert "WARNING: no loss law: 2 sizes" in result.output
    assert "for the loss law (2 sizes, 3 budgets)" in result.output


def test_the_example_of_the_documentation_has_a_law(study):
    """Three sizes, one of them held out, gave none."""
    page = (Path(__file__).resolve().parents[4] / "docs/guides/studies.md").read_text(encoding="utf-8")
    example = yaml.safe_load(re.search(r"```yaml\n(name: mine.*?)```", page, re.S)[1].replace("{...}", "null"))
    own = {key: example[key] for key in ("families", "sizes", "budgets", "seeds", "exclude", "fit", "evaluation")}
    plan = make_plan(study(**own, limits=FREE))
    assert plan_warnings(plan) == []
