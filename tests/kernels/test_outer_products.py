"""Sums of outer products against einsum, and the precision that they are added in."""

import pytest
import torch

from echo_lm.kernels import outer_products
from echo_lm.kernels.outer_products import sum_of_outer_products


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("length", [1, 7, 8, 21])
@pytest.mark.parametrize("groups", [1, 2])
def test_sums_and_gradients_are_those_of_einsum(length, groups, monkeypatch):
    monkeypatch.setattr(outer_products, "CHUNK", 8)
    x, b = draw(2, length, 4, 3).requires_grad_(), draw(2, length, groups, 5).requires_grad_()
    found = sum_of_outer_products(x, b)
    want = torch.einsum("bthp,bthn->bhpn", x, b.repeat_interleave(4 // groups, 2))
    torch.testing.assert_close(found, want)
    weights = draw(2, 4, 3, 5)
    ours, theirs = (torch.autograd.grad((t * weights).sum(), (x, b)) for t in (found, want))
    torch.testing.assert_close(ours, theirs)


def test_no_tokens_add_nothing():
    assert sum_of_outer_products(draw(2, 0, 4, 3), draw(2, 0, 1, 5)).tolist() == torch.zeros(2, 4, 3, 5).tolist()


def test_half_precision_factors_are_added_in_fp32():
    x, b = draw(1, 5000, 2, 3, dtype=torch.bfloat16).abs(), draw(1, 5000, 1, 4, dtype=torch.bfloat16).abs()
    found = sum_of_outer_products(x, b)
    want = torch.einsum("bthp,btn->bhpn", x.double(), b[:, :, 0].double())
    assert found.dtype == torch.float32
    assert ((found - want).abs() / want).max() < 1e-5  # added in bf16 it would be 1e-2
