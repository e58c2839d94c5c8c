"""Heads that read twice, against the definition; documents and ragged prompts of models with such heads."""

from itertools import pairwise

import pytest
import torch

from echo_lm.kernels.ska import ska_attention
from echo_lm.models import UserError, prefill, preset, step
from echo_lm.models.mixers.ska_hops import read

PAIRS = {"gate_input": "token", "gate_window": 2, "key_shift": 1, "value_shift": 0, "power": 0, "two_hop_heads": 2}


def test_the_second_read_asks_for_what_the_first_found():
    """Token by token: C G^-1 (U G^-1 q) for the first head, C G^-1 q for the others."""
    generator = torch.Generator().manual_seed(0)
    q, z, u = torch.randn(3, 2, 40, 3, 4, dtype=torch.float64, generator=generator)
    v = torch.randn(2, 40, 3, 5, dtype=torch.float64, generator=generator)
    y = read(q, z, torch.cat((v, u), -1), 1, power=0, ridge=0.1, chunk_size=16)
    for t in (0, 15, 16, 39):
        gram = torch.einsum("bthr,bths->bhrs", z[:, : t + 1], z[:, : t + 1]) + 0.1 * torch.eye(4).double()
        values = torch.einsum("bthp,bthr->bhpr", v[:, : t + 1], z[:, : t + 1])
        links = torch.einsum("bths,bthr->bhsr", u[:, : t + 1], z[:, : t + 1])
        x = torch.linalg.solve(gram, q[:, t])
        second = torch.linalg.solve(gram, torch.einsum("bhsr,bhr->bhs", links, x))
        x = torch.cat((second[:, :1], x[:, 1:]), 1)
        torch.testing.assert_close(y[:, t], torch.einsum("bhpr,bhr->bhp", values, x))


def test_pieces_of_a_row_and_padding():
    generator = torch.Generator().manual_seed(1)
    q, z, u, v = torch.randn(4, 2, 40, 3, 4, dtype=torch.float64, generator=generator)
    wide = torch.cat((v, u), -1)
    want = read(q, z, wide, 2, power=0)
    first, state = read(q[:, :23], z[:, :23], wide[:, :23], 2, power=0, return_state=True)
    real = torch.ones(2, 17, dtype=torch.bool)
    real[1, 9:] = False
    rest = read(q[:, 23:], z[:, 23:], wide[:, 23:], 2, power=0, state=state, mask=real)
    torch.testing.assert_close(first, want[:, :23])
    torch.testing.assert_close(rest[real], want[:, 23:][real])


def test_a_row_of_links_is_followed_at_full_size():
    """One layer goes over `k1 k2` and `k2 v`, apart and in any order, past mentions; K = 1 over the pairs' own keys does not."""
    first, middle, value, noise = torch.eye(6, dtype=torch.float64)[:4]
    rows = torch.stack([middle, value, noise, middle, noise, first, noise, first, middle, noise, first])
    gates = torch.tensor([0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0], dtype=torch.float64)[:, None]
    before = torch.cat((torch.zeros_like(rows[:1]), rows[:-1]))
    z, v = ((gates * part)[None, :, None] for part in (before, rows))
    q = first.expand_as(rows)[None, :, None]
    y = read(q, z, torch.cat((v, v), -1), 1, power=0, ridge=1e-9)
    torch.testing.assert_close(y[0, -1, 0], value, rtol=1e-6, atol=1e-6)
    steps = ska_attention(q, z, v, power=1, ridge=1e-9)
    assert steps[0, -1, 0].norm() == 0


@pytest.mark.parametrize("mode", ["exact", "chunk"])
def test_documents_and_ragged_prompts(mode, random_model):
    model = random_model("echo-1m", ska={**PAIRS, "mode": mode, "chunk_size": 16}).double()
    tokens = torch.randint(0, 50, (2, 70), generator=torch.Generator().manual_seed(0))
    borders = [0, 30, 31, 70, 75, 140]
    with torch.no_grad():
        packed = model(tokens, cu_seqlens=torch.tensor(borders)).flatten(0, 1)
        alone = [model(tokens.flatten()[a:b][None])[0] for a, b in pairwise(borders)]
        if mode == "exact":  # in chunk mode the grid is the row's
            torch.testing.assert_close(packed, torch.cat(alone), atol=1e-8, rtol=1e-8)
        _, cache = prefill(model, tokens, torch.tensor([70, 33]), segment=16)
        logits, _ = step(model, torch.tensor([3, 4]), cache)
        want = model(torch.cat((tokens[1, :33], torch.tensor([4])))[None])[0, -1]
    torch.testing.assert_close(logits[1], want, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("change", [{"key_shift": 0}, {"power": 1}, {"value_shift": 1}, {"two_hop_heads": 5}])
def test_what_it_needs_is_said(change):
    with pytest.raises(UserError, match="ska.two_hop_heads"):
        preset("echo-1m", ska={**PAIRS, **change})
