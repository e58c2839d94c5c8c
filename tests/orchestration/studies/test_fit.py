"""The fits against published constants, against scipy, and against numbers that were put in."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from echo_lm.orchestration.studies.analysis.fit import fit_study
from echo_lm.orchestration.studies.analysis.isoflop import fit_parabola, minimum
from echo_lm.orchestration.studies.analysis.loss_law import fit_loss, fit_sizes, interval, predict
from echo_lm.orchestration.studies.analysis.recall_law import fit_recall
from echo_lm.orchestration.studies.analysis.report import answer, write_report
from echo_lm.orchestration.studies.analysis.solver import huber, minimise
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.results import RecallRow

N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(44e6, 16e9, 8), np.geomspace(1e9, 500e9, 6)))


def test_noise_free_losses_give_the_published_constants(published):
    truth, law = published
    fit = fit_loss(N, D, law(N, D), delta=1e-2, bootstrap=100, seed=0)
    fitted = dict(zip(("A", "B", "E"), np.exp(fit.parameters[:3]), strict=True))
    fitted |= {"alpha": fit.parameters[3], "beta": fit.parameters[4]}
    assert fitted == pytest.approx(truth, rel=1e-3)


def coverage(published, replications: int, bootstrap: int) -> np.ndarray:
    """How often the 95% intervals of alpha and beta hold the truth, with 0.5% noise."""
    truth, law = published
    hits = np.zeros(2)
    for replication in range(replications):
        noise = 0.005 * np.random.default_rng([1, replication]).standard_normal(len(N))
        fit = fit_loss(N, D, law(N, D) * np.exp(noise), delta=1e-2, bootstrap=bootstrap, seed=replication)
        for i, name in enumerate(("alpha", "beta")):
            low, high = interval(fit, fit.resampled[:, 3 + i])
            hits[i] += low <= truth[name] <= high
    return hits


def test_intervals_cover_the_truth_in_a_sample(published):
    """Of 20, at least 16: a right interval misses five or more once in 400 samples. Intervals that hold everything: no."""
    assert (coverage(published, 20, 200) >= 16).all()
    _, law = published
    fit = fit_loss(
        N,
        D,
        law(N, D) * np.exp(0.005 * np.random.default_rng(0).standard_normal(48)),
        delta=1e-2,
        bootstrap=200,
        seed=0,
    )
    low, high = interval(fit, fit.resampled[:, 3])
    assert high - low < 0.06


@pytest.mark.slow
def test_intervals_cover_the_truth_in_90_to_99_of_100(published):
    hits = coverage(published, 100, 500)
    assert (hits >= 90).all()
    assert (hits <= 99).all()


def test_the_batched_solver_agrees_with_scipy():
    random = np.random.default_rng(3)
    x = np.linspace(0, 4, 30)
    target = 2 * np.exp(-0.7 * x) + 0.05 * random.standard_normal((2, 30))
    target[:, 5] += 3  # an outlier, which least squares would follow

    def model(p):
        decay = np.exp(-p[:, 1:] * x)
        return p[:, :1] * decay, np.stack([decay, -p[:, :1] * x * decay], axis=2)

    solutions, losses = minimise(model, target, np.ones((2, 2)), delta=0.1)
    for problem in range(2):
        expected = least_squares(
            lambda p, y=target[problem]: p[0] * np.exp(-p[1] * x) - y,
            [1, 1],
            loss="huber",
            f_scale=0.1,
            xtol=1e-14,
            ftol=1e-14,
        )
        assert solutions[problem] == pytest.approx(expected.x, rel=1e-4)
        assert losses[problem] == pytest.approx(huber(expected.fun, 0.1).sum(), rel=1e-6)


def test_the_bottom_of_an_isoflop_parabola():
    n = np.geomspace(1e6, 1e8, 5)
    size, loss = minimum(fit_parabola(n, np.exp(0.8 + 0.05 * np.log(n / 2e7) ** 2)))
    assert size == pytest.approx(2e7)
    assert loss == pytest.approx(np.exp(0.8))
    assert np.isnan(minimum(np.array([-1.0, 0.0, 0.0]))[0])


def recall_rows(state_exponent: float) -> list[RecallRow]:
    rows = []
    for state in (2**14, 2**16, 2**18):
        for pairs in (2, 4, 8, 16, 32):
            for length in (64, 256):
                difficulty = 40 * pairs**1.5 * length**0.5 / state**state_exponent
                accuracy = 1 / 32 + 31 / 32 / (1 + difficulty)
                rows.append(
                    RecallRow(
                        task="mqar",
                        label="",
                        pairs=pairs,
                        length=length,
                        queries=100_000,
                        correct=round(1e5 * accuracy),
                        chance=1 / 32,
                        state_bytes=state,
                    )
                )
    return rows


def test_recall_gives_back_its_exponents():
    fit = fit_recall(recall_rows(0.8), bootstrap=100, seed=0)
    assert dict(zip(fit.names[1:], fit.parameters[1:], strict=True)) == pytest.approx(
        {"state_bytes": 0.8, "pairs": 1.5, "length": 0.5}, rel=0.02
    )
    with pytest.raises(ValueError, match="above chance"):
        fit_recall([row.model_copy(update={"correct": 3125}) for row in recall_rows(0.8)], bootstrap=100, seed=0)


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
        cost = np.mean([cell.flops / cell.tokens / cell.parameters for cell in cells])
        best[family] = min(law(c.parameters, min(pair.flops / cost / c.parameters, 9e7)) for c in cells)
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


def test_a_law_of_sizes_gives_back_its_exponent():
    n = np.array([1e6, 4e6, 1e7, 2.5e7])
    parameters = fit_sizes(n, 0.6 + 90 * n**-0.38, delta=0.01)
    assert np.exp(parameters[[0, 2]]) == pytest.approx([90, 0.6], rel=0.01)
    assert parameters[3] == pytest.approx(0.38, rel=0.01)
    assert predict(parameters, 1e8, 1e9) == pytest.approx(0.6 + 90 * 1e8**-0.38, rel=1e-3)
    with pytest.raises(ValueError, match="3 sizes are too few for three parameters: four at least"):
        fit_sizes(n[:3], n[:3], delta=0.01)


def test_the_fit_does_not_depend_on_the_order_nor_on_held_out_cells(study, records):
    plan = make_plan(study(fit={"bootstrap": 100}))
    results = records(plan, noise=0.005)
    fit = fit_study(plan, results)
    assert fit_study(plan, results[::-1]) == fit
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
