"""The Mamba-2 scan and its convolution against the token recurrence, mamba-ssm and torch."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from echo_lm.kernels.ssd import causal_convolution, ssd_scan
from echo_lm.kernels.ssd.sequence import BLOCK, _sums_to_end

sys.modules.setdefault(
    "selective_scan_cuda", types.ModuleType("selective_scan_cuda")
)  # needs CUDA; only Mamba-1 uses it

BORDERS = torch.tensor([0, 1, 2, 30, 50, 64, 67, 69, 80, 134])


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def draw(batch, length, heads, width, groups, states, *, seed=0):
    """Random x, dt, a, b, c, d and an initial state, float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        randn(batch, length, heads, width),
        F.softplus(randn(batch, length, heads)),
        -torch.exp(randn(heads)),
        randn(batch, length, groups, states),
        randn(batch, length, groups, states),
        randn(heads),
        randn(batch, heads, width, states),
    )


def evaluate(inputs, backend, with_state, **options):
    *leaves, state = (t.clone().requires_grad_() for t in inputs)
    x, dt, a, b, c, d = leaves
    y, final = ssd_scan(
        x, dt, a, b, c, d=d, state=state if with_state else None, return_state=True, backend=backend, **options
    )
    generator = torch.Generator().manual_seed(5)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in (y, final))
    return [y, final, *torch.autograd.grad(loss, leaves + ([state] if with_state else []))]


@pytest.mark.parametrize("cu_seqlens", [None, BORDERS], ids=["whole", "documents"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("length", "groups"), [(67, 1), (67, 2), (67, 4)])
def test_chunks_agree_with_the_token_loop(cu_seqlens, with_state, length, groups):
    inputs = draw(2, length, 4, 5, groups, 6)
    options = dict(chunk_size=16, cu_seqlens=cu_seqlens)
    naive, fast = (evaluate(inputs, backend, with_state, **options) for backend in ("naive", "torch"))
    assert max(relative(a, b) for a, b in zip(fast, naive, strict=True)) <= 1e-12


@pytest.mark.parametrize("length", [1, 63, 64, 500])
def test_lengths(length):
    inputs = draw(1, length, 2, 8, 1, 16)
    naive, fast = (evaluate(inputs, backend, True) for backend in ("naive", "torch"))
    assert max(relative(a, b) for a, b in zip(fast, naive, strict=True)) <= 1e-11


def test_agrees_with_mamba_ssm():
    """Output, final state and all gradients against mamba-ssm's own minimal listing."""
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete

    x, dt, a, b, c, _, _ = draw(2, 128, 4, 8, 4, 16)
    ours, theirs = ([t.clone().requires_grad_() for t in (x, dt, a, b, c)] for _ in range(2))
    y, final = ssd_scan(*ours, chunk_size=32, return_state=True)
    x, dt, a, b, c = theirs
    want, want_final = ssd_minimal_discrete(x * dt[..., None], a * dt, b, c, 32)
    generator = torch.Generator().manual_seed(5)
    wy, wf = (torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (y, final))
    gradients = torch.autograd.grad((y * wy).sum() + (final * wf).sum(), ours)
    wanted = torch.autograd.grad((want * wy).sum() + (want_final * wf).sum(), theirs)
    errors = [relative(p, q) for p, q in zip((y, final, *gradients), (want, want_final, *wanted), strict=True)]
    assert max(errors) <= 1e-10


def test_zero_steps_leave_the_state():
    x, dt, a, b, c, _, state = draw(1, 20, 2, 4, 1, 6)
    dt[:, 12:] = 0
    _, padded = ssd_scan(x, dt, a, b, c, state=state, return_state=True, chunk_size=8)
    _, short = ssd_scan(x[:, :12], dt[:, :12], a, b[:, :12], c[:, :12], state=state, return_state=True)
    assert relative(padded, short) <= 1e-12


def test_convolution_agrees_with_conv1d():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 9, 5), (5, 4), (5,))
    )
    y = causal_convolution(x, weight, bias)
    want = F.conv1d(x.mT, weight[:, None], bias, padding=3, groups=5)[..., :9].mT
    weights = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    ours, theirs = (torch.autograd.grad((t * weights).sum(), (x, weight, bias)) for t in (y, want))
    assert max(relative(a, b) for a, b in zip((y, *ours), (want, *theirs), strict=True)) <= 1e-14


def test_convolution_continues_and_stops_at_borders():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((2, 12, 5), (5, 4)))
    whole = causal_convolution(x, weight)
    torch.testing.assert_close(causal_convolution(x[:, 7:], weight, state=x[:, 4:7]), whole[:, 7:])
    cut = causal_convolution(x, weight, cu_seqlens=torch.tensor([0, 12, 19, 20, 24]))
    alone = [causal_convolution(x[1:, a:b], weight) for a, b in ((0, 7), (7, 8), (8, 12))]
    torch.testing.assert_close(cut, torch.cat((whole[:1], torch.cat(alone, 1))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(backend="cuda"), "backend"),
        (dict(backend="triton"), "CUDA"),
        (dict(backend="mamba-ssm"), "CUDA"),
        (dict(state=torch.zeros(1, 2, 4, 5)), "state"),
        (dict(cu_seqlens=torch.tensor([0, 4])), "cu_seqlens"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x, dt, a, b, c, _, _ = draw(1, 6, 2, 4, 1, 6)
    with pytest.raises(ValueError, match=message):
        ssd_scan(x, dt, a, b, c, **change)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_sums_to_the_end_by_blocks(length):
    x = torch.randn(
        2, length, 3, generator=torch.Generator().manual_seed(length), dtype=torch.float64, requires_grad=True
    )
    want = x.flip(1).cumsum(1).flip(1)
    found = _sums_to_end(x)
    torch.testing.assert_close(found, want)
    weights = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    gradients = (torch.autograd.grad((sums * weights).sum(), x)[0] for sums in (found, want))
    torch.testing.assert_close(*gradients)
