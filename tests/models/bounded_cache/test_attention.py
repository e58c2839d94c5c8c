"""Decoding under a budget: the bytes are kept, a large budget changes nothing, and what was dropped is not seen."""

from typing import ClassVar

import pytest
import torch

from echo_lm.models import UserError, build_model, generate, prefill, preset, step
from echo_lm.models.bounded_cache import POLICIES, Policy, SinksAndRecent, bound_attention
from echo_lm.models.bounded_cache.policy import Decision
from echo_lm.models.decoding import Cache
from echo_lm.models.mixers.attention import Attention

ENTRY = 2 * 32 * 4 + 2  # keys and values of a layer in fp32, and whether each of two heads has it


@pytest.fixture(scope="module")
def model():
    """Two layers of attention around one of Mamba-2, all weights random."""
    config = preset(
        "hybrid-1m",
        vocab_size=60,
        d_model=32,
        layers=["attention", "mamba2", "attention"],
        attention={"num_heads": 2},
        feedforward={"width": 32},
        allow_edge_ska=False,
    )
    model = build_model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
    return model


def tokens(rows, length):
    return torch.randint(60, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("in_cache", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_for_everything_changes_nothing(name, in_cache, model):
    bounded = bound_attention(model, POLICIES[name](), 10**6, piece=16, positions_in_cache=in_cache)
    lengths = torch.tensor([90, 41])
    want, cache = prefill(model, tokens(2, 90), lengths)
    logits, own = prefill(bounded, tokens(2, 90), lengths)
    torch.testing.assert_close(logits, want)
    for token in range(3):
        following = torch.tensor([token, token + 1])
        want, cache = step(model, following, cache)
        logits, own = step(bounded, following, own)
        torch.testing.assert_close(logits, want)


@pytest.mark.parametrize("name", POLICIES)
def test_the_bytes_are_kept(name, model):
    budget = 40_000
    bounded = bound_attention(model, POLICIES[name](), budget, piece=16)
    capacity = bounded.blocks[0].mixer.capacity
    assert budget / 2 - ENTRY - 2 * 4 < bounded.blocks[0].mixer.budget
    _, cache = prefill(bounded, tokens(1, 300))
    for token in range(5):
        layers = Cache([cache[0], cache[2]])
        assert cache[0].k.shape[2] == capacity
        assert budget - 2 * (ENTRY + 2 * 4) < layers.nbytes() <= budget
        _, cache = step(bounded, torch.tensor([token]), cache)


def test_what_was_dropped_is_not_seen(model):
    """Token by token, the layer with sinks and the latest entries is attention with a band and the first columns."""
    layer = model.blocks[0].mixer
    capacity = 12
    bounded = bound_attention(model, SinksAndRecent(sinks=3), 2 * (capacity * ENTRY + 8), piece=1).blocks[0].mixer
    assert bounded.capacity == capacity
    x = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(2))
    cache = bounded.init_cache(2, x)
    found = []
    for t in range(40):
        y, cache = bounded.step(x[:, t], cache)
        found.append(y)
    q, k, v = layer._project(x, layer._rotation(x, 0))
    row, column = torch.arange(40)[:, None], torch.arange(40)
    # The new token is seen beside the `capacity` that were kept: three first ones and nine.
    visible = (column <= row) & ((column < 3) | (column >= row - (capacity - 3)))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    torch.testing.assert_close(torch.stack(found, 1), layer._project_out(want))


def test_positions_in_the_cache_do_not_grow(model):
    """Token by token, every query and key is rotated by its place among the entries at that time."""
    layer = model.blocks[0].mixer
    capacity = 12
    bounded = bound_attention(
        model, SinksAndRecent(sinks=3), 2 * (capacity * ENTRY + 8), piece=1, positions_in_cache=True
    )
    x = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(2))
    cache = bounded.blocks[0].mixer.init_cache(1, x)
    for t in range(40):
        y, cache = bounded.blocks[0].mixer.step(x[:, t], cache)
        seen = [*range(3), *range(t - 9, t + 1)] if t > capacity else list(range(t + 1))
        q, k, v = layer._project(x[:, seen], layer._rotation(x[:, seen], 0))
        want = torch.nn.functional.scaled_dot_product_attention(q[:, :, -1:], k, v)
        torch.testing.assert_close(y, layer._project_out(want)[:, 0])


@pytest.mark.parametrize("in_cache", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_rows_of_other_lengths_do_not_matter(name, in_cache, model):
    """A short row beside a long one is cut as it is alone."""
    bounded = bound_attention(model, POLICIES[name](), 40_000, piece=8, positions_in_cache=in_cache)
    rows = tokens(2, 120)
    together, cache = prefill(bounded, rows, torch.tensor([120, 77]))
    alone, own = prefill(bounded, rows[1:, :77])
    torch.testing.assert_close(together[1:], alone)
    for token in (3, 4):
        together, cache = step(bounded, torch.tensor([token, token]), cache)
        alone, own = step(bounded, torch.tensor([token]), own)
        torch.testing.assert_close(together[1:], alone)


def test_the_model_itself_stays_as_it_is(model):
    bounded = bound_attention(model, SinksAndRecent(), 40_000)
    assert isinstance(model.blocks[0].mixer, Attention)
    assert bounded.blocks[0].mixer.layer is model.blocks[0].mixer
    assert bounded.embedding is model.embedding
    assert len(generate(bounded, [[1, 2, 3]], max_new_tokens=4)[0]) == 4


def test_refusals_are_one_line(model):
    with pytest.raises(
        UserError, match=r"holds 0 entries: policy SinksAndRecent keeps the latest 0, so give it at least 266"
    ):
        bound_attention(model, SinksAndRecent(), 200)
    with pytest.raises(UserError, match=r"policy SnapKV keeps the latest 32, so give it at least 12,618"):
        bound_attention(model, POLICIES["snapkv"](), 10_000)
    with pytest.raises(UserError, match="has no attention layer whose cache could be bounded"):
        bound_attention(build_model(preset("mamba2-1m", vocab_size=60)), SinksAndRecent(), 10_000)


class Oldest(Policy):
    """Likes old entries, and remembers what it was shown."""

    shown: ClassVar[list] = []

    def decide(self, seen):
        self.shown.append(seen)
        return Decision(-seen.real.cumsum(-1).float())


@pytest.mark.parametrize("in_cache", [False, True])
def test_the_window_stays_and_its_attention_is_what_the_policy_reads(in_cache, model):
    layer = model.blocks[0].mixer
    budget = 2 * (5 * 32 * 4 + 8 * ENTRY + 8)
    bounded = bound_attention(model, Oldest(window=5), budget, piece=4, positions_in_cache=in_cache).blocks[0].mixer
    assert bounded.capacity == 8
    Oldest.shown.clear()
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(3))
    real = torch.ones(1, 4, dtype=torch.bool)
    cache = bounded.init_cache(1, x)
    for first in (0, 4, 8):
        _, cache = bounded.extend(x[:, first : first + 4], cache, real)
    q, k, v = layer._project(x, layer._rotation(x, 0))
    (seen,) = Oldest.shown  # after eight tokens nothing has to go
    stored = layer._project(x, None)[1] if in_cache else k
    torch.testing.assert_close(seen.keys, stored)
    logits = (q[:, :, -5:] @ k.mT) * 16**-0.5
    causal = torch.arange(12) <= torch.arange(7, 12)[:, None]
    torch.testing.assert_close(seen.weights, logits.masked_fill(~causal, -torch.inf).softmax(-1))
    torch.testing.assert_close(cache.k, stored[:, :, [0, 1, 2, 7, 8, 9, 10, 11]])
    torch.testing.assert_close(cache.v, v[:, :, [0, 1, 2, 7, 8, 9, 10, 11]])


def test_queries_that_are_not_there_have_no_attention(model):
    """A window longer than the row: only as many rows of attention as there are tokens."""
    bounded = bound_attention(model, POLICIES["snapkv"](window=6), 40_000, piece=4).blocks[0].mixer
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(4))
    _, cache = bounded.extend(x, bounded.init_cache(1, x), torch.ones(1, 4, dtype=torch.bool))
    weights = bounded._weights(cache, cache.k, torch.arange(4, 0, -1).expand(1, 2, 4))
    assert weights.sum(-1)[0, 0].tolist() == pytest.approx([0, 0, 1, 1, 1, 1])
