"""Laws and their fits: published constants come back, intervals hold the truth, outliers and idle designs are named."""

import numpy as np
import pytest

from echo_lm.orchestration.studies.statistics.cells import average_seeds
from echo_lm.orchestration.studies.statistics.choice import cross_validate
from echo_lm.orchestration.studies.statistics.law_fit import UNEQUAL_NOISE, check_design, estimate, fit_law
from echo_lm.orchestration.studies.statistics.laws import (
    CHINCHILLA,
    DATA_CONSTRAINED,
    KAPLAN,
    LAWS,
    NO_FLOOR,
    ONE_EXPONENT,
    SIZES,
    Law,
    Parameter,
    joint_law,
)
from echo_lm.orchestration.studies.statistics.outliers import find_outliers

WIDE = tuple(grid.ravel() for grid in np.meshgrid(np.geomspace(44e6, 16e9, 8), np.geomspace(1e9, 500e9, 6)))
SMALL = tuple(grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 25e6, 4), np.geomspace(1e7, 9e7, 3)))


def cells(design, log_noise=0.0):
    n, d = design
    truth = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}
    loss = CHINCHILLA.predict(CHINCHILLA.fitted(truth), {"n": n, "d": d})
    return average_seeds({"n": n, "d": d}, loss * np.exp(log_noise))


@pytest.mark.parametrize(("falls", "warned"), [(0.0, False), (1.5, True)])
def test_seeds_that_differ_more_in_some_cells_are_told(falls, warned):
    """Three seeds a cell; the noise of the last budget is a fifth of that of the first, or the same."""
    n, d = (np.repeat(values, 3) for values in SMALL)
    noise = 0.01 * (d / d.min()) ** (-falls / 2) * np.random.default_rng(3).standard_normal(len(n))
    fit = fit_law(CHINCHILLA, cells((n, d), noise), delta=1e-2, bootstrap=50, seed=0)
    assert any(warning.startswith(UNEQUAL_NOISE) for warning in fit.warnings()) is warned


def test_noise_free_losses_give_the_published_constants(published):
    truth, law = published
    some = average_seeds({"n": WIDE[0], "d": WIDE[1]}, law(*WIDE))
    fit = fit_law(CHINCHILLA, some, delta=1e-2, bootstrap=100, seed=0)
    assert {name: fit.value(name) for name in truth} == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("law", [*LAWS.values(), joint_law(2)], ids=lambda law: law.name)
def test_closed_derivatives_are_the_automatic_ones(law):
    n, d = SMALL
    columns = {"n": n, "d": d, "u": np.minimum(d, 2e7), "family": np.arange(12) % 2}
    fitted = law.starts(columns, np.linspace(1.0, 2.0, 12))[::5]
    values, jacobian = law.log_loss(fitted, columns)
    expected, automatic = Law.log_loss(law, fitted, columns)
    assert values == pytest.approx(expected, rel=1e-10)
    assert jacobian == pytest.approx(automatic, rel=1e-7, abs=1e-9)


def test_a_law_of_ones_own_is_fitted_like_the_others():
    exponential = Law(
        name="mine",
        parameters=(
            Parameter("E", 0.01, 10, (0.5, 2.0), log=True),
            Parameter("A", 0.01, 1e6, (1.0, 100.0), log=True),
            Parameter("alpha", 0.0, 2.0, (0.2, 0.6)),
        ),
        loss=lambda p, c: p["E"] + p["A"] / c["n"] ** p["alpha"],
        columns=("n",),
    )
    n = np.geomspace(1e6, 1e9, 8)
    some = average_seeds({"n": n}, 0.6 + 90 * n**-0.38)
    mine = fit_law(exponential, some, delta=1e-2, bootstrap=100, seed=0)
    assert [mine.value(name) for name in ("E", "A", "alpha")] == pytest.approx([0.6, 90, 0.38], rel=0.01)
    assert [estimate(SIZES, some, delta=1e-2)[0][2]] == pytest.approx([0.38], rel=0.01)


def test_repeated_data_have_their_own_exponent():
    n, d = WIDE
    u = np.minimum(d, 3e10)
    truth = {"E": 0.5, "A": 50.0, "B": 2e4, "alpha": 0.3, "beta": 0.4, "R": 4.0}
    loss = DATA_CONSTRAINED.predict(DATA_CONSTRAINED.fitted(truth), {"n": n, "d": d, "u": u})
    best, _ = estimate(DATA_CONSTRAINED, average_seeds({"n": n, "d": d, "u": u}, loss), delta=1e-2)
    assert DATA_CONSTRAINED.natural(best)[[3, 4, 5]] == pytest.approx([0.3, 0.4, 4.0], rel=0.02)


def test_intervals_cover_the_truth_in_a_sample():
    """Of 16, at least 13: a right interval misses four or more once in 140 samples. Intervals that hold everything: no."""
    hits, widths = np.zeros(2), []
    for replication in range(16):
        noise = 0.005 * np.random.default_rng([2, replication]).standard_normal(12)
        fit = fit_law(CHINCHILLA, cells(SMALL, noise), delta=1e-2, bootstrap=300, seed=replication)
        for i, (name, value) in enumerate((("alpha", 0.348), ("beta", 0.366))):
            low, high = fit.interval(name)
            hits[i] += low <= value <= high
            widths.append(high - low)
    assert (hits >= 13).all()
    assert np.median(widths) < 0.25


def test_seeds_that_share_a_misfit_count_as_one_cell():
    """Three seeds at 0.1% around cells that lie 1% from the law: the interval is that of the cells, not of 36 runs."""
    random = np.random.default_rng(3)
    misfit = 0.01 * random.standard_normal(12)
    one = fit_law(CHINCHILLA, cells(SMALL, misfit), delta=1e-2, bootstrap=300, seed=0)
    tripled = tuple(np.repeat(values, 3) for values in SMALL)
    noise = np.repeat(misfit, 3) + 0.001 * random.standard_normal(36)
    three = fit_law(CHINCHILLA, cells(tripled, noise), delta=1e-2, bootstrap=300, seed=0)
    assert len(three.cells) == 12
    assert np.ptp(three.interval("alpha")) == pytest.approx(np.ptp(one.interval("alpha")), rel=0.3)
    assert three.misfit == pytest.approx(one.misfit, rel=0.2)
    assert three.lack_of_fit < 1e-6
    assert any("the law does not fit" in warning for warning in three.warnings())
    noisy = np.repeat(np.zeros(12), 3) + 0.01 * random.standard_normal(36)
    assert fit_law(CHINCHILLA, cells(tripled, noisy), delta=1e-2, bootstrap=100, seed=0).lack_of_fit > 0.01


def test_cells_of_more_seeds_weigh_more():
    n, d = (np.concatenate([values, np.repeat(values[:1], 8)]) for values in SMALL)
    noise = 0.01 * np.random.default_rng(5).standard_normal(20)
    fit = fit_law(CHINCHILLA, cells((n, d), noise), delta=1e-2, bootstrap=100, seed=0)
    assert fit.cells.seeds.tolist() == [9] + [1] * 11
    assert fit.weights[0] > 1.05 * fit.weights[1]


def test_one_cell_far_from_the_others_is_flagged_and_a_clean_study_has_none():
    noise = 0.005 * np.random.default_rng(0).standard_normal(12)
    assert not find_outliers(CHINCHILLA, cells(SMALL, noise), delta=1e-2).any()
    noise[4] += 0.1
    assert np.flatnonzero(find_outliers(CHINCHILLA, cells(SMALL, noise), delta=1e-2)).tolist() == [4]
    noise[4] -= 0.2
    assert np.flatnonzero(find_outliers(CHINCHILLA, cells(SMALL, noise), delta=1e-2)).tolist() == [4], "and from below"


def test_one_ray_identifies_no_exponent_and_three_do():
    def on_rays(ratios):
        n = np.repeat(np.geomspace(1e6, 1e9, 12 // len(ratios)), len(ratios))
        d = n * np.tile(ratios, len(n) // len(ratios))
        noise = 0.005 * np.random.default_rng(0).standard_normal(len(n))
        return fit_law(CHINCHILLA, cells((n, d), noise), delta=1e-2, bootstrap=100, seed=0).warnings()

    assert any("alpha and beta are not told apart" in warning for warning in on_rays([20.0]))
    assert on_rays([5.0, 20.0, 80.0]) == []


def test_a_value_at_its_bound_is_marked():
    """Losses without a floor: E goes to the least that is allowed."""
    n, d = SMALL
    some = average_seeds({"n": n, "d": d}, 50 * n**-0.3 + 300 * d**-0.3)
    fit = fit_law(CHINCHILLA, some, delta=1e-2, bootstrap=100, seed=0)
    assert fit.at_bound("E", fit.value("E"))
    assert not fit.at_bound("alpha", fit.value("alpha"))
    assert any(warning.startswith("E lies at a bound") for warning in fit.warnings())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_a_loss_that_no_law_has_is_refused(bad):
    with pytest.raises(ValueError, match="loss of row 1 is"):
        average_seeds({"n": [1e6, 2e6], "d": [1e7, 1e7]}, [2.0, bad])


def test_too_few_cells_or_sizes_are_refused():
    some = cells(SMALL)
    with pytest.raises(ValueError, match="5 cells are too few for 5 parameters: 6 at least"):
        check_design(CHINCHILLA, some.keep(np.arange(12) < 5))
    with pytest.raises(ValueError, match="2 sizes do not tell a power law from a constant"):
        check_design(CHINCHILLA, some.keep(some.columns["n"] < 4e6))


def test_cross_validation_prefers_the_law_that_made_the_losses():
    n, d = WIDE
    some = average_seeds({"n": n, "d": d}, 0.8 + 50 * n**-0.2 + 5e4 * d**-0.5)
    scores = cross_validate([NO_FLOOR, ONE_EXPONENT, CHINCHILLA], some, [list(n), list(d)], delta=1e-2)
    assert scores[0].law is CHINCHILLA
    assert scores[0].error < 1e-4 < scores[1].error
    few = some.keep(np.arange(48) < 5)
    assert cross_validate([CHINCHILLA], few, [list(few.columns["n"])], delta=1e-2)[0].error == np.inf
    assert KAPLAN.name == "kaplan"


def test_resamples_see_the_other_basin():
    """With one ratio of tokens to parameters alpha and beta can be exchanged; resamples from the best fit alone never show it."""
    n = np.geomspace(1e6, 1e9, 12)
    some = cells((n, 20 * n), 0.005 * np.random.default_rng(0).standard_normal(12))
    low, high = fit_law(CHINCHILLA, some, delta=1e-2, bootstrap=100, seed=0).interval("alpha")
    assert high - low > 1
