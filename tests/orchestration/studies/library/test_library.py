"""The library: its page runs as a notebook, tables come back from CSV, refits agree with the report."""

import re
from pathlib import Path

import numpy as np
import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.studies import library as studies
from echo_lm.orchestration.studies.analysis.fit import fit_study
from echo_lm.orchestration.studies.planner import make_plan

ROOT = Path(__file__).resolve().parents[4]


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/guides/studies-library.md").read_text(encoding="utf-8"), re.S
    )
    assert len(blocks) > 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert {path.name for path in tmp_path.glob("*.png")} == {"loss.png", "residuals.png", "alpha.png"}
    assert set(names["fit"].fits) == {"echo", "mamba2", "hybrid", "transformer"}
    assert names["joint"].fits[studies.refit.ALL].value("alpha") > 0


@pytest.fixture
def table(study, records):
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = records(plan, noise=0.005)
    from echo_lm.orchestration.studies.library.table import from_results

    return from_results(plan, results), fit_study(plan, results)


def test_a_refit_gives_the_estimates_of_the_report(table):
    loaded, reported = table
    refit = loaded.refit(bootstrap=100)
    for law in reported.laws:
        assert refit.fits[law.family].value("alpha") == pytest.approx(law.alpha.value, rel=1e-6)
        assert refit.fits[law.family].value("E") == pytest.approx(law.E.value, rel=1e-6)
    predictions = refit.predictions()
    assert list(predictions["predicted"]) == pytest.approx([p.predicted.value for p in reported.predictions], rel=1e-6)
    everything = loaded.refit(hold_out=[], bootstrap=100)
    assert len(everything.fits["echo"].cells) == 15
    assert everything.predictions().empty


def test_a_table_comes_back_from_csv(table, tmp_path):
    loaded, _ = table
    again = studies.load(loaded.to_csv(tmp_path / "toy.csv"))
    assert again.families == loaded.families
    wanted, found = loaded.to_pandas(), again.to_pandas()
    for column in ("n", "d", "u", "flops", "loss", "held_out", "family", "size", "budget"):
        assert list(found[column]) == list(wanted[column]), column


def test_weights_are_a_column(table):
    loaded, _ = table
    rows = tuple(row | {"trust": 1e-6 if row["size"] == "1m" else 1.0} for row in loaded.rows)
    weighed = studies.StudyTable("toy", rows).refit(weights="trust", bootstrap=100)
    without = loaded.refit(hold_out=["1m", "50m"], bootstrap=100)
    assert weighed.fits["echo"].value("beta") == pytest.approx(without.fits["echo"].value("beta"), rel=0.02)


def test_foreign_tables_have_isoflop_optima(published):
    _, law = published
    rows = [
        {"n": n, "d": c / 6 / n, "loss": law(n, c / 6 / n), "budget": f"{c:.0e}"}
        for c in (1e19, 1e20)
        for n in np.geomspace(1e8, 2e9, 6)
    ]
    found = studies.from_table(rows).isoflops()
    assert list(found["budget"]) == ["1e+19", "1e+20"]
    assert (found["low"] < found["n"]).all()
    assert found["n"][1] > 2 * found["n"][0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: studies.from_table({"n": [1.0], "loss": [1.0]}), "there is no column 'd': n, d and loss are needed"),
        (lambda: studies.from_table({"n": [1.0], "d": [2.0], "loss": ["x"]}), "loss of row 0 is 'x'"),
        (lambda: studies.from_table({"n": [1.0], "d": [2.0], "loss": [float("nan")]}), "loss of row 0 is nan"),
        (lambda: studies.load("nowhere.csv"), "nowhere.csv cannot be read"),
        (
            lambda: studies.from_table({"n": [1e6], "d": [2e6], "loss": [3.0]}).refit("chinchila"),
            "no law is called 'chinchila'",
        ),
        (
            lambda: studies.from_table({"n": [1e6], "d": [2e6], "loss": [3.0]}).refit(hold_out=["9m"]),
            "no size is called '9m'",
        ),
        (
            lambda: studies.from_table({"n": [1e6], "d": [2e6], "loss": [3.0]}).refit(weights="w"),
            "no column is called 'w'",
        ),
    ],
)
def test_wrong_input_gives_one_line(call, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call()


def test_too_few_runs_have_a_note_instead_of_a_law():
    refit = studies.from_table({"n": [1e6, 2e6], "d": [2e6, 2e6], "loss": [3.0, 2.9]}).refit(bootstrap=100)
    assert refit.fits == {}
    assert refit.notes == {"all": "2 cells are too few for 5 parameters: 6 at least"}
