"""The cascading cache: hand-made cases, and the paper's procedure token by token."""

import pytest
import torch

from echo_lm.models.bounded_cache import Cascading, Seen
from echo_lm.models.bounded_cache.cascading import survivors


def kept_tokens(score, position, capacity, sinks, levels):
    """The places of what is kept of one row without padding."""
    score = torch.tensor(score, dtype=torch.float32)[None]
    real = torch.ones_like(score, dtype=torch.bool)
    kept = survivors(score, real, torch.tensor([position]), capacity, sinks, levels)
    return kept[0].nonzero()[:, 0].tolist()


def test_one_level_is_a_window_behind_sinks():
    assert kept_tokens([0.0] * 8, 8, capacity=5, sinks=2, levels=1) == [0, 1, 5, 6, 7]


def test_what_is_taken_pushes_the_oldest_out():
    """A sink and two sub-caches of two. Token 5 is number 4 without the sink: even, so the second sub-cache takes token 3."""
    assert kept_tokens([0.0] * 6, 6, capacity=5, sinks=1, levels=2) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize(("fourth", "kept"), [(0.1, [0, 2, 3, 5, 6]), (0.5, [0, 2, 4, 5, 6]), (0.9, [0, 2, 4, 5, 6])])
def test_what_is_not_taken_competes_with_what_was_taken_last(fourth, kept):
    """The next token, 6, has number 5: token 4, which leaves the first sub-cache, competes with token 3, and wins a tie."""
    entries = torch.tensor([0.0, 0.0, 0.5, fourth, 0.0, 0.0])  # of the tokens 0, 2, 3, 4, 5, 6
    found = kept_tokens(entries.tolist(), 7, capacity=5, sinks=1, levels=2)
    assert torch.tensor([0, 2, 3, 4, 5, 6])[found].tolist() == kept


def one_after_the_other(score, capacity, sinks, levels):
    """The paper's procedure: tokens enter the first sub-cache; what leaves one enters the next, or competes for its last place."""
    size = (capacity - sinks) // levels
    room = [capacity - sinks - (levels - 1) * size] + [size] * (levels - 1)
    first, caches = [], [[] for _ in range(levels)]
    for token in range(len(score)):
        if token < sinks:
            first.append(token)
            continue
        filling = token < capacity  # until all is full, every token is taken
        incoming = token
        for level, cache in enumerate(caches):
            if not filling and (token - sinks) % 2**level:
                if score[incoming] >= score[cache[-1]]:
                    cache[-1] = incoming
                break
            cache.append(incoming)
            if len(cache) <= room[level]:
                break
            incoming = cache.pop(0)
    return first + [token for cache in reversed(caches) for token in cache]


@pytest.mark.parametrize(("capacity", "sinks", "levels"), [(7, 4, 3), (16, 4, 4), (13, 0, 5), (9, 1, 1), (21, 4, 2)])
@pytest.mark.parametrize("piece", [1, 5, 16])
def test_a_piece_is_cut_as_its_tokens_would_be_one_after_the_other(capacity, sinks, levels, piece):
    """Two rows of unequal length, in pieces, with ties."""
    score = torch.randint(0, 4, (2, 90), generator=torch.Generator().manual_seed(capacity)).float()
    lengths = torch.tensor([90, 61])
    entries, real = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool)
    for start in range(0, 90, piece):
        new = torch.arange(start, min(90, start + piece)).expand(2, -1)
        entries, real = torch.cat((entries, new), 1), torch.cat((real, new < lengths[:, None]), 1)
        position = torch.minimum(lengths, torch.tensor(start + new.shape[1]))
        kept = survivors(score.gather(1, entries), real, position, capacity, sinks, levels)
        found = [row[keep].tolist() for row, keep in zip(entries, kept, strict=True)]
        want = [one_after_the_other(score[i][: position[i]].tolist(), capacity, sinks, levels) for i in (0, 1)]
        assert found == want
        width = max(map(len, found))
        entries = torch.tensor([row + [0] * (width - len(row)) for row in found])
        real = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in found])


def seen(weights, carried, position):
    """Of one row and three places: weights `[H, W, N]`, carried `[H, N]`."""
    weights = torch.tensor(weights)[None]
    heads, count = weights.shape[1], weights.shape[3]
    real, keys = torch.ones(1, heads, count, dtype=torch.bool), torch.zeros(1, heads, count, 1)
    return Seen(weights, keys, real, torch.tensor(carried)[None], torch.tensor([position]), 3)


def test_the_average_takes_in_the_queries_since_the_last_decision():
    nan = float("nan")
    two = Cascading(window=2, decay=0.5).decide(
        seen([[[0.2, 0.4, 0.4, 0.0], [0.1, 0.0, 0.3, 0.6]]], [[0.8, 0.8, nan, nan]], 4)
    )
    # 0.25 x before + 0.25 x the query before the last + 0.5 x the last
    torch.testing.assert_close(two.carried[0, 0], torch.tensor([0.3, 0.3, 0.25, 0.3]))
    one = Cascading(window=2, decay=0.5).decide(
        seen([[[9.0, 9, 9, 0], [0.1, 0.0, 0.3, 0.6]]], [[0.8, 0.8, 0.2, nan]], 4)
    )
    torch.testing.assert_close(one.carried[0, 0], torch.tensor([0.45, 0.4, 0.25, 0.3]))


def test_heads_keep_the_same_tokens():
    """Two sub-caches of one. The fifth token, number 3 without the sink, makes those before it compete by the mean of the heads."""
    nan = float("nan")
    policy = Cascading(window=1, sinks=1, levels=2, decay=0.0)
    first, second = [[0.1, 0.4, 0.3, 0.2]], [[0.1, 0.0, 0.8, 0.1]]
    decision = policy.decide(seen([first, second], [[0.0] * 3 + [nan]] * 2, 5))
    assert decision.scores.tolist() == [[[1.0, 0.0, 1.0, 1.0]]]
    swapped = policy.decide(seen([first, first], [[0.0] * 3 + [nan]] * 2, 5))
    assert swapped.scores.tolist() == [[[1.0, 1.0, 0.0, 1.0]]]


def test_a_cascade_has_a_level():
    with pytest.raises(ValueError, match="levels must be at least 1"):
        Cascading(levels=0)
