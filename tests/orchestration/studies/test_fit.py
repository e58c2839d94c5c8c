"""The fits of a study: from records to laws, predictions, comparisons and the report."""

from pathlib import Path

import numpy as np
import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import read_json
from echo_lm.orchestration.studies.analysis.fit import fit_study
from echo_lm.orchestration.studies.analysis.report import answer, write_report
from echo_lm.orchestration.studies.export import ExportedStudy
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.results import RecallRow
from echo_lm.orchestration.studies.tracking import fit_metrics

PUBLISHED = Path(__file__).resolve().parents[3] / "docs/results/study-code-h100/study.json"


def test_a_study_by_the_published_law_is_predicted_better_than_by_the_naive_guess(study, records, published):
    _, law = published
    plan = make_plan(study())
    results = records(plan, noise=0.002)
    fit = fit_study(plan, results)
    assert fit.missing == ()
    assert [law.cells for law in fit.laws] == [12, 12], "no held-out cell enters a fit"
    assert len(fit.predictions) == 6
    assert all("50m" in prediction.cell for prediction in fit.predictions)
    assert max(abs(prediction.error) for prediction in fit.predictions) < 0.015
    assert all(abs(prediction.error) < abs(prediction.naive_error) for prediction in fit.predictions)
    measured = {result.cell.name: result.loss for result in results}
    first = fit.predictions[0]
    assert first.naive == measured[first.cell.replace("50m", "25m")]
    assert first.measured == measured[first.cell]
    (pair,) = fit.comparisons
    best = {}
    for family in ("echo", "transformer"):
        cells = [cell for cell in plan.cells if cell.family == family]
        # Each size by its own FLOPs a token, and no more tokens than any cell had.
        most = max(cell.tokens for cell in cells)
        best[family] = min(law(c.parameters, min(pair.flops / (c.flops / c.tokens), most)) for c in cells)
    true = 0.97 * best["echo"] / best["transformer"]  # echo's cells were made 3% better
    assert pair.ratio.low < true < pair.ratio.high < 1
    assert pair.ratio.high - pair.ratio.low < 0.02


def test_a_law_of_one_budget_predicts_where_no_law_in_tokens_holds(study, records):
    """Losses that fall to a half between two budgets: what models do that learn to copy there."""
    plan = make_plan(study(fit={"bootstrap": 100}))
    level = {"10M": 2.0, "30M": 1.9, "90M": 0.7}
    results = [
        r.model_copy(update={"loss": level[r.cell.budget] + 40 * r.cell.parameters**-0.3})
        for r in records(plan, noise=0.0)
    ]
    predictions = fit_study(plan, results).predictions
    assert max(abs(prediction.one_budget_error) for prediction in predictions) < 0.005
    assert max(abs(prediction.error) for prediction in predictions) > 0.015
    fewer = [r for r in results if r.cell.name != "echo-4m-90M-s0"]
    of_cell = {prediction.cell: prediction.one_budget for prediction in fit_study(plan, fewer).predictions}
    assert of_cell["echo-50m-90M-s0"] is None, "three sizes do not tell three parameters"
    assert of_cell["transformer-50m-90M-s0"] is not None


def test_the_fit_does_not_depend_on_the_order_nor_on_held_out_cells(study, records):
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = records(plan, noise=0.005)
    fit = fit_study(plan, results)
    assert fit_study(plan, results[::-1]) == fit
    metrics = fit_metrics(fit.model_dump(mode="json"))
    assert len(metrics) == 1 + 2 * 5 * 3 + 6
    assert np.isfinite(list(metrics.values())).all(), "MLflow takes every one"
    wrong = [r.model_copy(update={"loss": 9.0}) if r.cell.held_out else r for r in results]
    assert fit_study(plan, wrong).laws == fit.laws


def test_isoflop_studies_have_their_best_sizes(study, records):
    budgets = {"flops": [1e16, 3e16, 1e17]}
    plan = make_plan(study(budgets=budgets, fit={"hold_out": [], "bootstrap": 100}, limits={"max_epochs": 1e9}))
    fit = fit_study(plan, records(plan, noise=0.0))
    assert len(fit.isoflops) == 6
    assert all((iso.best_parameters is None) == bool(iso.note) for iso in fit.isoflops)


def test_the_report_says_what_is_missing_and_is_the_same_twice(study, records, tmp_path):
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = records(plan, noise=0.005)[:-1]
    fit = fit_study(plan, results)
    name = plan.cells[-1].name
    report = write_report(tmp_path, plan, results, fit, None, {name: "out of memory"})
    text = report.read_text()
    assert f"- {name}: failed: out of memory" in text
    assert "1 of 30 cells are missing" in text
    page = report.with_suffix(".html").read_text()
    assert page.count("data:image/png;base64") == text.count("](figures/")
    assert "<table>" in page
    assert "figures/" not in page
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    write_report(tmp_path, plan, results, fit, None, {name: "out of memory"})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert len(answer(plan.study, results, fit)) == 3


def test_the_report_sets_three_predictions_side_by_side(study, records, tmp_path):
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = [r for r in records(plan, noise=0.005) if r.cell.name != "echo-4m-90M-s0"]
    fit = fit_study(plan, results)
    text = write_report(tmp_path, plan, results, fit, None, {}).read_text()
    table = text.split("## Extrapolation")[1].split("\n## ")[0]
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")]
        for line in table.splitlines()
        if "|" in line
    }
    header, short, whole = rows["held-out cell"], rows["echo-50m-90M-s0"], rows["transformer-50m-90M-s0"]
    at = header.index("law of its budget")
    assert short[at : at + 2] == ["-", "-"]
    (prediction,) = (p for p in fit.predictions if p.cell == "transformer-50m-90M-s0")
    assert whole[at : at + 2] == [f"{prediction.one_budget:.4f}", f"{prediction.one_budget_error:+.2%}"]
    errors = np.abs([p.one_budget_error for p in fit.predictions if p.one_budget_error is not None])
    assert len(errors) == len(fit.predictions) - 1
    assert f"laws through the cells of one budget are off by {errors.mean():.2%} and {errors.max():.2%}" in text


def test_the_naive_guess_is_the_next_smaller_size_of_the_plan_or_nothing(study, records):
    """Not of what happens to be finished: an easier rival than the one that is named."""
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = records(plan, noise=0.005)
    by_name = {r.cell.name: r.loss for r in results}
    guesses = {prediction.cell: prediction.naive for prediction in fit_study(plan, results).predictions}
    assert guesses["echo-50m-90M-s0"] == by_name["echo-25m-90M-s0"]
    fewer = [r for r in results if r.cell.name != "echo-25m-90M-s0"]
    guesses = {prediction.cell: prediction.naive for prediction in fit_study(plan, fewer).predictions}
    assert guesses["echo-50m-90M-s0"] is None
    assert guesses["transformer-50m-90M-s0"] == by_name["transformer-25m-90M-s0"]


def with_recall(results, correct):
    """`correct(cell)` of 1,000 questions at each of two lengths, of two tasks, one of which has another row that all fail."""

    def rows(cell):
        counts = [
            ("niah", 64, correct(cell)),
            ("niah", 256, correct(cell)),
            ("mqar", 64, correct(cell)),
            ("mqar", 256, 0),
        ]
        return tuple(
            RecallRow(
                task=t, label=t, pairs=8, length=n, queries=1000, correct=c, chance=0.03, state_bytes=cell.state_bytes
            )
            for t, n, c in counts
        )

    return [r.model_copy(update={"recall": rows(r.cell)}) for r in results]


def test_recall_is_told_of_the_largest_budget_at_a_size_that_most_families_have(study, records):
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = [r for r in records(plan, noise=0.005) if r.cell.name != "transformer-50m-90M-s0"]
    accurate = {"10M": 100, "30M": 500, "90M": 900}
    measured = with_recall(results, lambda cell: accurate[cell.budget] + (50 if cell.size == "25m" else 0))
    fit = fit_study(plan, measured)
    loss, recall, _ = answer(plan.study, measured, fit)
    # (95% + 95% / 2) / 2: the mean of the two tasks
    assert "size 25m, trained on 90M" in recall
    assert "echo 71.2% with" in recall
    assert "transformer 71.2% with" in recall
    (pair,) = fit.comparisons
    assert f"at {pair.flops:.2g} FLOPs" in loss
    worse = with_recall(results, lambda cell: accurate[cell.budget] // (1 if cell.budget == "90M" else 2))
    same = with_recall(results, lambda cell: accurate[cell.budget])
    assert fit_study(plan, worse).recall == fit_study(plan, same).recall, "smaller budgets enter no law of recall"


def test_what_is_held_out_is_what_the_study_now_says(study, records):
    """Records state `held_out` of the day they were made; 9 cells were fitted where 12 should be."""
    results = records(make_plan(study()), noise=0.002)
    later = make_plan(study(fit={"hold_out": [], "bootstrap": 100}))
    fit = fit_study(later, results)
    assert [law.cells for law in fit.laws] == [15, 15]
    assert fit.predictions == ()
    assert "nothing was held out" in answer(later.study, results, fit)[2]
    other = fit_study(make_plan(study(fit={"hold_out": ["1m"], "bootstrap": 100})), results)
    assert {prediction.cell.split("-")[1] for prediction in other.predictions} == {"1m"}


def test_where_the_state_is_counted_is_what_the_study_now_says(study, records, tmp_path):
    results = with_recall(records(make_plan(study()), noise=0.002), lambda cell: 500)
    later = make_plan(study(fit={"state_context": 65536, "bootstrap": 100}))
    fit = fit_study(later, results)
    text = write_report(tmp_path, later, results, fit, None, {}).read_text()
    state = later.cells[-1].state_bytes
    assert state > 2 * results[-1].cell.state_bytes, "a Transformer at a longer context"
    assert f"| {state:,} |" in text


def test_the_loss_is_the_metric_that_the_study_now_names(study, records, tmp_path):
    """The report said "L: perplexity" over bits per byte."""
    both = [
        r.model_copy(update={"metrics": {"language/bits_per_byte": r.loss, "language/perplexity": 2 ** (2 * r.loss)}})
        for r in records(make_plan(study()), noise=0.002)
    ]
    later = make_plan(study(evaluation={"loss": "language/perplexity"}, fit={"bootstrap": 100}))
    fit = fit_study(later, both)
    assert fit.predictions[0].measured == pytest.approx(2 ** (2 * both[12].loss))
    assert f"{2 ** (2 * both[0].loss):.4f}" in write_report(tmp_path, later, both, fit, None, {}).read_text()
    gone = make_plan(study(evaluation={"loss": "language/linux/bits_per_byte"}))
    with pytest.raises(UserError, match="cell echo-1m-10M-s0 has no language/linux/bits_per_byte"):
        fit_study(gone, both)


def test_cells_of_different_suites_enter_no_common_fit(study, records):
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = [
        r.model_copy(update={"suites": {"language": "a" * 64} if r.cell.budget != "90M" else {"pocket": "b" * 64}})
        for r in records(plan, noise=0.002)
    ]
    with pytest.raises(
        UserError, match=r"echo-1m-10M-s0 was measured by language \(aaaaaaaa\), cell echo-1m-90M-s0 by pocket"
    ):
        fit_study(plan, results)
    changed = [r.model_copy(update={"suites": {"language": f"{i % 2}" * 64}}) for i, r in enumerate(results)]
    with pytest.raises(UserError, match="their numbers are of different samples"):
        fit_study(plan, changed)


def test_a_diverged_cell_enters_nothing_and_is_named(study, records, tmp_path):
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = records(plan, noise=0.002)
    for bad in (float("nan"), -1.0):
        with_one = [r.model_copy(update={"loss": bad}) if r.cell.name == "echo-4m-30M-s0" else r for r in results]
        fit = fit_study(plan, with_one)
        assert fit.unusable == ("echo-4m-30M-s0",)
        assert fit.laws[0].cells == 11
    text = write_report(tmp_path, plan, with_one, fit, None, {}).read_text()
    assert "- echo-4m-30M-s0 has no positive finite loss" in text
    with pytest.raises(UserError, match="no finished cell has a positive loss, first echo-1m-10M-s0"):
        fit_study(plan, [r.model_copy(update={"loss": float("nan")}) for r in results])


def test_an_outlier_is_named_and_does_not_widen_the_law(study, records, tmp_path):
    plan = make_plan(study(fit={"bootstrap": 200}))
    results = records(plan, noise=0.002)
    clean = fit_study(plan, results)
    off = [r.model_copy(update={"loss": r.loss * 1.1}) if r.cell.name == "echo-4m-30M-s0" else r for r in results]
    fit = fit_study(plan, off)
    assert fit.laws[0].outliers == ("echo-4m-30M-s0",)
    assert fit.laws[1].outliers == clean.laws[0].outliers == ()
    wide, narrow = (law.alpha.high - law.alpha.low for law in (fit.laws[0], clean.laws[0]))
    assert wide < 2 * narrow
    assert "**echo-4m-30M-s0 is an outlier**" in write_report(tmp_path, plan, off, fit, None, {}).read_text()


def test_held_out_sizes_enter_no_parabola_and_are_predicted_by_it(study, records):
    """The law of one budget fitted a monotone curve to losses that are U-shaped at one cost."""
    sizes = {name: {"preset": name} for name in ("1m", "4m", "10m", "25m", "50m")}
    budgets = {"flops": [3e14, 1e15, 3e15]}  # the larger models see so few tokens that their losses rise again
    plan = make_plan(
        study(
            sizes=sizes, budgets=budgets, families=["transformer"], limits={"max_epochs": 1e9}, fit={"bootstrap": 100}
        )
    )
    results = records(plan, noise=0.001)
    fit = fit_study(plan, results)
    assert {iso.sizes for iso in fit.isoflops} == {4}
    assert all(prediction.one_budget is not None for prediction in fit.predictions)
    rising = fit.predictions[0]
    assert rising.measured > rising.naive
    assert rising.one_budget > rising.naive, "a power law in N goes on falling"
    moved = [r.model_copy(update={"loss": 2 * r.loss}) if r.cell.held_out else r for r in results]
    assert fit_study(plan, moved).isoflops == fit.isoflops


def test_what_a_design_cannot_tell_stands_in_the_report(study, records, tmp_path):
    plan = make_plan(
        study(
            budgets={"tokens_per_parameter": [20]},
            sizes=["1m", "4m", "10m", "25m", "50m", "180m"],
            fit={"hold_out": [], "bootstrap": 100},
            limits={"max_epochs": 1e9},
        )
    )
    fit = fit_study(plan, records(plan, noise=0.005))
    assert all("alpha and beta are not told apart" in law.warnings[0] for law in fit.laws)
    text = write_report(tmp_path, plan, records(plan, noise=0.005), fit, None, {}).read_text()
    assert "**echo**: alpha and beta are not told apart" in text
    assert "*: a bound of the fit" in " ".join(text.split())


def test_the_published_study_compares_families_by_each_sizes_own_flops():
    """One mean for all sizes gave 0.991 for Mamba-2 against the Transformer, and 0.819 for the hybrid."""
    exported = ExportedStudy.model_validate(read_json(PUBLISHED))
    options = exported.plan.study.fit.model_copy(update={"bootstrap": 100})
    plan = exported.plan.model_copy(update={"study": exported.plan.study.model_copy(update={"fit": options})})
    ratios = {(pair.first, pair.second): pair.ratio.value for pair in fit_study(plan, exported.results).comparisons}
    assert ratios["mamba2", "transformer"] == pytest.approx(1.020, abs=0.002)
    assert ratios["hybrid", "transformer"] == pytest.approx(0.829, abs=0.002)
