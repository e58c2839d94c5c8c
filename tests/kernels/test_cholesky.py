"""Sums that rounding has made indefinite: factored, read and decoded from without a NaN; others untouched."""

import pytest
import torch
import torch.nn.functional as F

from echo_lm.kernels.ska import SKAState, ska_attention, ska_step, start_decoding
from echo_lm.kernels.ska.cholesky import invert
from tests.helpers.interpreter import interpreted

RIDGE = 1e-3
# Queries are some 5 long, and no eigenvalue is below half the ridge.
LARGEST = 2 * 6 / RIDGE


def alike_keys(tokens, rank=24, kinds=16):
    """Keys of a few kinds that differ by one percent, `[tokens, rank]`."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randn(kinds, rank, generator=generator) * 0.01 / rank**0.5
    kind += F.normalize(torch.randn(rank, generator=generator), dim=-1)
    return F.normalize(kind, dim=-1)[torch.randint(kinds, (tokens,), generator=generator)]


def rounded_gram(error, rank=24):
    """What sums of many such keys can come to: one large eigenvalue, the others off by up to twice `error`, of either sign."""
    u = alike_keys(1, rank)[0]
    noise = torch.randn(rank, rank, generator=torch.Generator().manual_seed(1)) * error / rank**0.5
    return 1e4 * torch.outer(u, u) + noise + noise.T


def test_what_is_definite_is_inverted_as_it_is():
    keys = torch.randn(3, 2, 40, 24, generator=torch.Generator().manual_seed(0))
    gram = keys.mT @ keys + RIDGE * torch.eye(24)
    gram[1, 1] = RIDGE * torch.eye(24)
    found = invert(gram, RIDGE)
    assert torch.equal(found.matrix, gram)
    assert torch.equal(found.factor, torch.linalg.cholesky(gram))
    assert torch.equal(found.inverse, torch.cholesky_inverse(found.factor))


# Some are not definite, some only nearly, so that they factor and their inverses are far too large.
ERRORS = [0.0003, 0.0006, 0.001, 0.0035, 0.004, 0.0042, 0.0045, 0.01, 0.1]


@pytest.mark.parametrize("error", ERRORS)
def test_only_what_is_not_definite_is_shifted_and_by_little(error):
    bad = rounded_gram(error) + RIDGE * torch.eye(24)
    assert torch.linalg.eigvalsh(bad)[0] < 0.8 * RIDGE
    good = torch.eye(24)
    found = invert(torch.stack((good, bad)), RIDGE)
    assert torch.equal(found.matrix[0], good)
    shift = (found.matrix[1] - bad).diagonal()
    assert 0 <= shift.max() < max(RIDGE, 32 * error)
    torch.testing.assert_close(found.factor @ found.factor.mT, found.matrix, rtol=1e-5, atol=1e-5)
    assert found.inverse[1].diagonal().max() <= 2 / (RIDGE + shift.min())


def test_the_sums_of_a_quarter_million_alike_keys_are_off_by_more_than_the_ridge():
    """Summed chunk by chunk in fp32, as the layer does it."""
    keys = alike_keys(2**18).view(-1, 32, 24)
    gram = (keys.mT @ keys).cumsum(0)[-64:] + RIDGE * torch.eye(24)
    assert torch.linalg.eigvalsh(gram.double())[:, 0].max() < 0
    assert invert(gram, RIDGE).inverse.isfinite().all()


def test_what_is_not_finite_stays_so():
    broken = torch.eye(4).expand(3, 4, 4).clone()
    broken[1, 2, 2] = torch.nan
    broken[2] *= -1  # no shift helps
    found = invert(broken, RIDGE).inverse
    assert torch.equal(found[0], torch.eye(4))
    assert found[1].isnan().any()
    assert found[2].isnan().all()


def read_from_rounded_sums(error, device="cpu", keys="alike"):
    """A state whose value map is the identity, so that what is read is G^-1 q; q, k and v of 96 tokens. "random" keys reach where
    the sums are small, so that the exact form refines its solves; of 32 tokens, as a chunk that they have mended is not shifted."""
    tokens = 96 if keys == "alike" else 32
    q, v, k = torch.randn(3, 1, tokens, 1, 24, generator=torch.Generator().manual_seed(2))
    k = alike_keys(96)[None, :, None].clone() if keys == "alike" else F.normalize(k, dim=-1)
    empty = torch.zeros(1, 1, 24, 24)
    state = SKAState(rounded_gram(error)[None, None], empty, empty + torch.eye(24), torch.zeros(1, 1, 24))
    state = SKAState(*(part.to(device) for part in state))
    return [part.to(device) for part in (q, k, v)], state


def read_and_differentiate(error, mode, backend, device="cpu", keys="alike"):
    """y and the gradients of q, k and v, all finite and within their bounds. What leaves is the plain sum, shifted nowhere."""
    leaves, state = read_from_rounded_sums(error, device, keys)
    leaves = [part.requires_grad_() for part in leaves]
    options = dict(mode=mode, power=0, ridge=RIDGE, state=state, backend=backend, return_state=True)
    y, final = ska_attention(*leaves, **options)
    y.square().mean().sqrt().backward()
    found = [y.detach(), *(leaf.grad for leaf in leaves)]
    assert all(part.abs().max() < LARGEST for part in found)
    k = leaves[1].detach()[0, :, 0]
    torch.testing.assert_close(final.gram[0, 0], state.gram[0, 0] + k.mT @ k, rtol=1e-5, atol=1e-5)
    return found


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("mode", ["exact", "chunk", "prefix"])
def test_layers_read_such_sums_and_give_gradients(mode, error):
    read_and_differentiate(error, mode, "torch")


# Those that are shifted alike, whatever the order of the additions in the two implementations.
PLAIN_ERRORS = [0.0006, 0.004, 0.01, 0.1]


def kernels_read_such_sums(device="cpu"):
    """The kernels are within the bounds everywhere, and as the PyTorch form to what such matrices leave of fp32."""
    for mode, keys in (("exact", "alike"), ("exact", "random"), ("chunk", "alike")):
        # The interpreter takes a second for each: the smallest and the largest.
        for error in ERRORS if device == "cuda" else PLAIN_ERRORS[::3]:
            found = read_and_differentiate(error, mode, "triton", device, keys)
            if error in PLAIN_ERRORS:
                for a, b in zip(found, read_and_differentiate(error, mode, "torch", device, keys), strict=True):
                    assert (a - b).norm() < 0.03 * b.norm(), (mode, keys, error)


def test_the_kernels_read_such_sums_under_the_interpreter():
    interpreted("from tests.kernels import test_cholesky as t; t.kernels_read_such_sums()")


@pytest.mark.gpu
def test_the_kernels_read_such_sums():
    kernels_read_such_sums("cuda")


@pytest.mark.parametrize("error", ERRORS)
def test_decoding_starts_from_such_sums(error):
    (q, k, v), state = read_from_rounded_sums(error)
    decode = start_decoding(state, ridge=RIDGE)
    y = ska_step(q[:, 0], k[:, 0], v[:, 0], decode, power=0, ridge=RIDGE, backend="torch")
    assert y.abs().max() < LARGEST
