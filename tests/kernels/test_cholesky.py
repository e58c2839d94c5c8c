"""Sums that rounding has made indefinite: factored, read and decoded from without a NaN; others untouched."""

import pytest
import torch
import torch.nn.functional as F

from echo_lm.kernels.ska import SKAState, ska_attention, ska_step, start_decoding
from echo_lm.kernels.ska.cholesky import cholesky

RIDGE = 1e-3


def alike_keys(tokens, rank=24, kinds=16):
    """Keys of a few kinds that differ by one percent, `[tokens, rank]`."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randn(kinds, rank, generator=generator) * 0.01 / rank**0.5
    kind += F.normalize(torch.randn(rank, generator=generator), dim=-1)
    return F.normalize(kind, dim=-1)[torch.randint(kinds, (tokens,), generator=generator)]


def indefinite_gram(rank=24):
    """What sums of a million such keys can come to: one large eigenvalue, the others off by a hundredth, of either sign."""
    u = alike_keys(1, rank)[0]
    noise = torch.randn(rank, rank, generator=torch.Generator().manual_seed(1)) * 0.01 / rank**0.5
    return 1e4 * torch.outer(u, u) + noise + noise.T


def test_what_is_definite_is_factored_as_it_is():
    keys = torch.randn(3, 2, 40, 24, generator=torch.Generator().manual_seed(0))
    gram = keys.mT @ keys + RIDGE * torch.eye(24)
    gram[1, 1] = RIDGE * torch.eye(24)
    assert torch.equal(cholesky(gram, RIDGE), torch.linalg.cholesky(gram))


def test_only_what_is_indefinite_is_shifted_and_by_little():
    bad = indefinite_gram() + RIDGE * torch.eye(24)
    assert torch.linalg.cholesky_ex(bad)[1] > 0
    good = torch.eye(24)
    found = cholesky(torch.stack((good, bad)), RIDGE)
    assert torch.equal(found[0], good)
    shift = (found[1] @ found[1].T - bad).diagonal()
    assert found.isfinite().all()
    assert shift.min() > 0
    assert shift.max() < 2**-16 * bad.trace()


def test_nan_stays():
    assert cholesky(torch.full((1, 4, 4), torch.nan), RIDGE).isnan().any()


def read_from_indefinite_sums():
    """A state whose value map is the identity, so that what is read is G^-1 q; q, k and v of 96 tokens."""
    q, v = torch.randn(2, 1, 96, 1, 24, generator=torch.Generator().manual_seed(2))
    empty = torch.zeros(1, 1, 24, 24)
    state = SKAState(indefinite_gram()[None, None], empty, empty + torch.eye(24), torch.zeros(1, 1, 24))
    return q, alike_keys(96)[None, :, None].clone(), v, state


# |q| over the smallest shift of this trace, 1e4 * 2^-20, is 500; from factors that failed 8,000 to 900,000 are read.
LARGEST = 1000


@pytest.mark.parametrize("mode", ["exact", "chunk", "prefix"])
def test_layers_read_such_sums_and_give_gradients(mode):
    *leaves, state = read_from_indefinite_sums()
    leaves = [part.requires_grad_() for part in leaves]
    y = ska_attention(*leaves, mode=mode, power=0, ridge=RIDGE, state=state, backend="torch")
    y.square().mean().backward()
    assert y.abs().max() < LARGEST
    assert all(leaf.grad.abs().max() < LARGEST for leaf in leaves)


def test_decoding_starts_from_such_sums():
    q, k, v, state = read_from_indefinite_sums()
    decode = start_decoding(state, ridge=RIDGE)
    y = ska_step(q[:, 0], k[:, 0], v[:, 0], decode, power=0, ridge=RIDGE, backend="torch")
    assert y.abs().max() < LARGEST
