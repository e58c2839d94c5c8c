"""IsoFLOP parabolas, the best size by a law, recall laws and scores: numbers that were put in come back, with their intervals."""

import numpy as np
import pytest

from echo_lm.orchestration.studies.results import RecallRow
from echo_lm.orchestration.studies.statistics.isoflop import best_size_interval, fit_parabola
from echo_lm.orchestration.studies.statistics.laws import CHINCHILLA
from echo_lm.orchestration.studies.statistics.optimum import Costs, frontier, optimum
from echo_lm.orchestration.studies.statistics.recall_law import fit_recall
from echo_lm.orchestration.studies.statistics.score_law import fit_scores

TRUTH = CHINCHILLA.fitted({"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366})


def bowl(n, random=None, noise=0.0):
    loss = np.exp(0.8 + 0.05 * np.log(n / 2e7) ** 2)
    return loss if random is None else loss * np.exp(noise * random.standard_normal(len(n)))


def test_the_bottom_of_a_parabola():
    n = np.geomspace(1e6, 1e8, 5)
    parabola = fit_parabola(n, bowl(n))
    assert parabola.best_size == pytest.approx(2e7)
    assert parabola.loss(2e7) == pytest.approx(np.exp(0.8))
    assert np.isnan(fit_parabola(n, 1 / bowl(n)).best_size)
    assert best_size_interval(fit_parabola(n, 1 / bowl(n))) is None
    with pytest.raises(ValueError, match="2 sizes are too few for a parabola"):
        fit_parabola([1e6, 1e6, 2e6], [3.0, 3.1, 2.9])


def test_three_sizes_have_no_interval_and_four_a_wide_one():
    random, n = np.random.default_rng(0), np.geomspace(5e6, 8e7, 3)
    assert best_size_interval(fit_parabola(n, bowl(n, random, 0.005))) is None
    n = np.geomspace(5e6, 8e7, 4)
    parabolas = [fit_parabola(n, bowl(n, random, 0.002)) for _ in range(3)]
    pooled = best_size_interval(parabolas[0], parabolas[1:])
    assert pooled is not None
    low, high = pooled
    assert low < 2e7 < high
    assert high / low < 1.5


def test_four_and_seven_sizes_are_covered_as_often_as_they_say():
    """Of 300 80% intervals 240 are expected, with a standard deviation of 7; 66% were found without Student's t."""
    for sizes in (4, 7):
        random, n = np.random.default_rng(sizes), np.geomspace(5e6, 8e7, sizes)
        hits = 0
        for _ in range(300):
            interval = best_size_interval(fit_parabola(n, bowl(n, random, 0.003)), level=0.8)
            hits += interval is None or interval[0] <= 2e7 <= interval[1]
        assert 215 <= hits <= 265


def test_best_size_and_tokens_by_a_law():
    """Hoffmann et al. 2022, equation 4, with 6 N FLOPs a token; and with costs that grow faster the best size is smaller."""
    n = np.geomspace(1e6, 1e10, 9)
    costs = Costs.of(n, 6 * n)
    flops = np.array([1e18, 1e20])
    sizes, tokens = optimum(CHINCHILLA, TRUTH, flops, costs)
    a, b, _, alpha, beta = CHINCHILLA.natural(TRUTH)
    scale = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    assert sizes == pytest.approx(scale * (flops / 6) ** (beta / (alpha + beta)), rel=0.03)
    assert sizes * tokens == pytest.approx(flops / 6, rel=1e-6)
    steeper, _ = optimum(CHINCHILLA, TRUTH, flops, Costs.of(n, 6 * n * (n / 1e8) ** 0.3))
    assert (steeper < sizes).all()


def test_the_frontier_takes_each_sizes_own_flops():
    """Two sizes; the larger costs three times as much a token as its parameters say: at one budget it loses."""
    n, flops = np.array([1e7, 4e7]), np.array([1e16])
    own = Costs.of([1e7, 4e7, 4e7], [6e7, 3 * 24e7, 3 * 24e7])
    lowest = frontier(CHINCHILLA, TRUTH, flops, own, n)
    by_hand = [CHINCHILLA.predict(TRUTH, {"n": n[i : i + 1], "d": flops / own.flops_per_token[i]})[0] for i in (0, 1)]
    assert lowest == pytest.approx([min(by_hand)])
    mean = Costs.of(n, n * np.mean([6, 18]))
    assert frontier(CHINCHILLA, TRUTH, flops, mean, n) != pytest.approx(lowest, rel=1e-3)
    assert own.at(np.array([2e7]))[0] == pytest.approx(np.sqrt(6e7 * 72e7)), "between sizes on a line of logarithms"
    capped = frontier(CHINCHILLA, TRUTH, np.array([1e20]), own, n, most_tokens=1e9)
    assert capped == pytest.approx(CHINCHILLA.predict(TRUTH, {"n": n[1:], "d": np.array([1e9])}))


def recall_rows(state_exponent: float, scatter: float = 0.0, models: int = 6) -> tuple[list[RecallRow], list[int]]:
    random, rows, labels = np.random.default_rng(1), [], []
    for model, state in enumerate(np.geomspace(2**14, 2**18, models)):
        own = np.exp(scatter * random.standard_normal())
        for pairs in (2, 4, 8, 16, 32):
            for length in (64, 256):
                accuracy = 1 / 32 + 31 / 32 / (1 + own * 40 * pairs**1.5 * length**0.5 / state**state_exponent)
                rows.append(
                    RecallRow(
                        task="mqar",
                        label="",
                        pairs=pairs,
                        length=length,
                        queries=100_000,
                        correct=round(1e5 * accuracy),
                        chance=1 / 32,
                        state_bytes=int(state),
                    )
                )
                labels.append(model)
    return rows, labels


def test_recall_gives_back_its_exponents():
    rows, models = recall_rows(0.8)
    fit = fit_recall(rows, models)
    assert dict(zip(fit.names[1:], fit.parameters[1:], strict=True)) == pytest.approx(
        {"state_bytes": 0.8, "pairs": 1.5, "length": 0.5}, rel=0.02
    )
    assert fit.warning() == "6 models are few: intervals are wider than 95% asks"
    assert fit_recall(rows + rows, [*models, *(f"other {model}" for model in models)]).warning() == ""
    with pytest.raises(ValueError, match="above chance"):
        fit_recall([row.model_copy(update={"correct": 3125}) for row in rows], models)
    with pytest.raises(ValueError, match="3 models do not tell how models scatter: 4 at least"):
        fit_recall(rows[:30], models[:30])


def test_models_that_scatter_have_wide_intervals_and_rows_of_one_model_do_not_narrow_them():
    calm, scattered = (fit_recall(*recall_rows(0.8, scatter)) for scatter in (0.0, 0.6))
    low, high = scattered.interval("state_bytes")
    assert low < 0.8 < high
    assert high - low > 10 * np.ptp(calm.interval("state_bytes"))
    rows, models = recall_rows(0.8, 0.6)
    twice = fit_recall(rows + rows, models + models)
    assert np.ptp(twice.interval("state_bytes")) == pytest.approx(high - low, rel=0.05)


def test_scores_follow_the_loss():
    loss = np.linspace(1.0, 3.0, 9)
    score = 0.25 + 0.75 / (1 + np.exp(4 * (loss - 1.8)))
    fit = fit_scores(loss, score + 0.01 * np.random.default_rng(0).standard_normal(9), chance=0.25)
    assert (fit.middle, fit.slope) == pytest.approx((1.8, 4), rel=0.1)
    assert fit.interval("middle")[0] < 1.8 < fit.interval("middle")[1]
    assert fit.predict(10.0) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="3 models are too few"):
        fit_scores(loss[:3], score[:3])
    with pytest.raises(ValueError, match="nothing bends"):
        fit_scores(loss, np.full(9, 0.25))
