"""Policies on cases made by hand: which entries have the highest scores."""

import pytest
import torch

from echo_lm.models.bounded_cache import GlobalKV, RedundancyKV, Seen, SinksAndRecent, SnapKV, Tova
from echo_lm.models.bounded_cache.rkv import redundancy


def seen(weights, keys=None, real=None, carried=None, capacity=1):
    """Of one row: weights `[H, W, N]`, keys `[N, D]` of every head."""
    weights = torch.as_tensor(weights, dtype=torch.float32)[None]
    heads, count = weights.shape[1], weights.shape[3]
    keys = torch.eye(count) if keys is None else torch.tensor(keys)
    real = torch.ones(count, dtype=torch.bool) if real is None else torch.tensor(real)
    carried = None if carried is None else torch.tensor(carried)[None]
    real = real.expand(1, heads, -1)
    return Seen(weights, keys.expand(1, heads, -1, -1), real, carried, torch.tensor([count]), capacity)


def order(decision):
    """Entries of each head, the best first."""
    return decision.scores[0].argsort(dim=-1, descending=True, stable=True).tolist()


def test_sinks_and_the_latest():
    assert order(SinksAndRecent(sinks=2).decide(seen(torch.zeros(1, 0, 6))))[0] == [0, 1, 5, 4, 3, 2]


def test_padding_is_no_sink():
    real = [False, True, True, True]
    scores = SinksAndRecent(sinks=1).decide(seen(torch.zeros(1, 0, 4), real=real)).scores[0, 0]
    assert scores[1] == torch.inf
    assert scores[3] > scores[2]


def test_tova_averages_the_latest_query_over_heads():
    first = [[9.0, 0, 0, 0], [0.5, 0.1, 0.1, 0.3]]
    second = [[0, 9.0, 0, 0], [0.1, 0.7, 0.1, 0.1]]
    decision = Tova().decide(seen([first, second]))
    assert decision.scores.shape == (1, 1, 4)
    torch.testing.assert_close(decision.scores[0, 0], torch.tensor([0.3, 0.4, 0.1, 0.2]))


def test_snapkv_sums_queries_and_takes_neighbours_along():
    weights = [[[0, 0, 0.6, 0, 0, 0.4], [0, 0, 0.5, 0.1, 0, 0.4]]]
    alone = SnapKV(window=2, neighbours=1).decide(seen(weights)).scores[0, 0]
    torch.testing.assert_close(alone, torch.tensor([0, 0, 1.1, 0.1, 0, 0.8]))
    beside = SnapKV(window=2, neighbours=3).decide(seen(weights)).scores[0, 0]
    torch.testing.assert_close(beside, torch.tensor([0, 1.1, 1.1, 1.1, 0.8, 0.8]))


def test_of_like_keys_the_latest_is_least_redundant():
    """Three copies of a key and one of its own: S has ones among the copies, and each row forgives its latest copy."""
    keys = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])[None, None]
    found = redundancy(keys, torch.ones(1, 1, 4, dtype=torch.bool), 0.5)[0, 0]
    # Rows 0 and 1 forgive entry 2, row 2 forgives entry 1; columns then hold 0: rows 1, 2; 1: row 0; 2: none; 3: none.
    expected = torch.tensor([2 / 4, 1 / 4, 0, 0]).softmax(-1)
    torch.testing.assert_close(found, expected)


def test_r_kv_drops_what_says_the_same():
    keys = [[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    weights = [[[0.2] * 5]]
    assert order(RedundancyKV(window=1, neighbours=1).decide(seen(weights, keys)))[0][-2:] == [1, 0]
    importance_alone = RedundancyKV(window=1, neighbours=1, share=1.0).decide(seen(weights, keys)).scores
    torch.testing.assert_close(importance_alone, torch.full((1, 1, 5), 0.2))


def test_g_kv_remembers_what_was_important():
    weights, before = [[[0.1, 0.2, 0.4, 0.3]]], [[1.0, 0.1, float("nan"), float("nan")]]
    decision = GlobalKV(window=1, share=1.0).decide(seen(weights, carried=before))
    torch.testing.assert_close(decision.scores[0, 0], torch.tensor([0.8, 0.5, 1.0, 0.75]))
    assert decision.carried is decision.scores
    first = GlobalKV(window=1, share=1.0).decide(seen(weights))
    torch.testing.assert_close(first.scores[0, 0], torch.tensor([0.25, 0.5, 1.0, 0.75]))


def test_g_kv_takes_redundancy_off_but_does_not_carry_it():
    keys = [[1.0, 0], [1, 0], [1, 0], [0, 1]]
    decision = GlobalKV(window=1).decide(seen([[[0.25] * 4]], keys))
    assert order(decision)[0][-1] == 0
    torch.testing.assert_close(decision.carried, torch.ones(1, 1, 4))


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match="window must not be negative"):
        Tova(window=-1)
