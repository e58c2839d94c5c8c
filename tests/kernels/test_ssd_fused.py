"""The SSD kernels against the token loop in float64: under Triton's interpreter here, on a GPU with `-m gpu`."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from echo_lm.kernels.ssd import ssd_scan
from echo_lm.kernels.ssd.fused import why_not_fused
from echo_lm.models.config import Mamba2Config
from echo_lm.models.mixers import mamba2
from tests.helpers.interpreter import interpreted

NAMES = ("y", "state", "dx", "ddt", "da", "db", "dc", "dd", "dstate")
BOUND = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 8e-3}


def draw(length, states, *, batch=2, heads=3, width=16, groups=1, decay="usual", documents=False, seed=0):
    """x, dt, a, b, c, d and an entering state in float64, borders, and the gradients of y and of the final state.

    decay: "usual" as a layer begins with (a token fades within some hundreds), "strong" (within a few) or "none" (dt a of
    1e-4, so that all of the row adds up).
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = F.softplus(randn(batch, length, heads) + {"usual": -3.0, "strong": 2.0, "none": -3.0}[decay])
    a = -torch.exp(randn(heads) + {"usual": 0.0, "strong": 1.0, "none": -6.0}[decay])
    x = randn(batch, length, heads, width)
    b, c = (randn(batch, length, groups, states) * states**-0.5 for _ in range(2))
    borders = None
    if documents:
        inner = torch.rand(batch * length, generator=generator) < 0.03
        inner[0] = True
        inner[length - 1] = inner[length - 2] = True  # a document of one token
        borders = torch.cat((inner.nonzero().squeeze(1), torch.tensor([batch * length]))).to(torch.int32)
    state = randn(batch, heads, width, states)
    return (x, dt, a, b, c, randn(heads), state), borders, (randn(*x.shape), randn(*state.shape))


def run(inputs, borders, weights, *, backend, dtype, device="cpu", with_state=True, with_skip=True, chunk_size=None):
    """y, the final state and the gradients of x, dt, a, b, c, d and the entering state. x, b and c are of `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kinds = (dtype, wide, wide, dtype, dtype, wide, wide)
    leaves = [t.to(device, kind).requires_grad_() for t, kind in zip(inputs, kinds, strict=True)]
    x, dt, a, b, c, d, state = leaves
    outputs = ssd_scan(
        x,
        dt,
        a,
        b,
        c,
        d=d if with_skip else None,
        state=state if with_state else None,
        return_state=True,
        cu_seqlens=None if borders is None else borders.to(device),
        chunk_size=chunk_size,
        backend=backend,
    )
    loss = sum((out.double() * w.to(device)).sum() for out, w in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [t.detach().double().cpu() for t in (*outputs, *gradients)]


def relative(a, b):
    """Relative RMS; infinite where a holds a NaN, which no comparison would notice."""
    a, b = (t.detach().double().cpu() for t in (a, b))
    error = float((a - b).norm() / b.norm().clamp(min=1e-12))
    return math.inf if math.isnan(error) else error


def assert_close(found, wanted, bound, what=""):
    off = {name: relative(a, b) for name, a, b in zip(NAMES, found, wanted, strict=True)}
    worst = max(off, key=off.get)
    assert off[worst] <= bound, (what, worst, off)


def check(dtype, device, length, states, chunk_size, options, call):
    """Compare with the token loop on the same rounded inputs, with NaN in all memory that is handed out."""
    inputs, borders, (dy, dfinal) = draw(length, states, **options)
    rounded = [t.to(dtype).double() if i in (0, 3, 4) else t for i, t in enumerate(inputs)]
    weights = dy.to(dtype).double(), dfinal  # dy is handed on in the dtype of y
    wanted = run(rounded, borders, weights, backend="naive", dtype=torch.float64, device=device, **call)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty gives with NaN
    try:
        found = run(
            rounded, borders, weights, backend="triton", dtype=dtype, device=device, chunk_size=chunk_size, **call
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(found, wanted, BOUND[dtype], (length, states, chunk_size, options, call))


CASES = [
    (torch.float32, 37, 16, 16, dict(heads=1), {}),
    (torch.float32, 63, 20, 32, dict(heads=5, width=24, decay="strong"), dict(with_skip=False)),
    (torch.float32, 70, 16, 64, dict(heads=4, groups=2, documents=True), dict(with_state=False)),
    (torch.float32, 130, 64, 64, dict(batch=1, heads=2, decay="none"), {}),
    # Seventeen chunks, so that the row is walked in two segments.
    (torch.float32, 150, 16, 64, dict(batch=1, documents=True), {}),
    (torch.float32, 270, 16, 16, dict(batch=1, heads=2, documents=True), {}),
    (torch.float16, 50, 16, 32, dict(batch=1), {}),
    (torch.float32, 1, 16, 16, dict(batch=1), {}),
]


def test_the_kernels_under_the_interpreter_equal_the_loop():
    interpreted(
        """
from tests.kernels import test_ssd_fused as t
for case in t.CASES:
    t.check(case[0], "cpu", *case[1:])
"""
    )


def test_a_row_without_gradients_of_the_final_state_or_of_y():
    interpreted(
        """
import torch
from tests.kernels import test_ssd_fused as t
inputs, _, _ = t.draw(40, 16, heads=2, batch=1)
def gradients(backend, which):
    x, dt, a, b, c, d, state = leaves = [t.float().requires_grad_() for t in inputs]
    outputs = t.ssd_scan(x, dt, a, b, c, d=d, state=state, return_state=True, backend=backend)
    return torch.autograd.grad(outputs[which].square().sum(), leaves, allow_unused=True, materialize_grads=True)
for which in (0, 1):
    for a, b in zip(gradients("triton", which), gradients("torch", which), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
"""
    )


def test_the_operators_are_fit_for_torch_compile():
    interpreted(
        """
import torch
from tests.kernels import test_ssd_fused as t
from torch.library import opcheck
import echo_lm.kernels.ssd.fused.op
inputs, *_ = t.draw(20, 16, heads=2, batch=1)
x, dt, a, b, c, d, state = (t.float().requires_grad_() for t in inputs)
for skip, entering, save in ((d, state, False), (None, None, True)):
    arguments = (x, dt, a, b, c, skip, entering, None, 16, save)
    opcheck(torch.ops.echo_lm.ssd.default, arguments, atol=1e-4, rtol=1e-4)
"""
    )


def make_mixer(d_model=128, **options):
    """A Mamba-2 layer with every weight random."""
    layer = mamba2.Mamba2(d_model, Mamba2Config(**options), 1)
    with torch.no_grad():
        layer.initialize(torch.Generator().manual_seed(0))
        layer.norm.weight.fill_(1.0)
    return layer


def through(layer, x, call=None):
    """What the layer, or `call` in its stead, makes of x, and the gradients of x and of every weight."""
    x = x.detach().requires_grad_()
    y = layer(x) if call is None else call(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


def test_a_mixer_compiled_and_checkpointed_under_the_interpreter():
    interpreted(
        """
import functools, pytest, torch
from tests.kernels import test_ssd_fused as t
layer = t.make_mixer(16, d_state=16, headdim=16)
x = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(2))
wanted = t.through(layer, x)
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(t.mamba2, "ssd_scan", functools.partial(t.ssd_scan, backend="triton"))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for call in (None, compiled, lambda x: t.checkpoint(layer, x, use_reentrant=False)):
        for a, b in zip(t.through(layer, x, call), wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
"""
    )


def test_what_the_kernels_do_not_take_is_said():
    x, b = torch.randn(1, 4, 1, 8), torch.randn(1, 4, 1, 8)
    dt, a = torch.ones(1, 4, 1), -torch.ones(1)
    with pytest.raises(ValueError, match="CUDA tensors"):
        ssd_scan(x, dt, a, b, b, backend="triton")
    wide = x.new_zeros(1, 4, 1, 200)
    for tensors, size, reason in [
        ((x.double(), b), None, "fp32"),
        ((wide, b), None, "at most 128"),
        ((x, wide), None, "at most 128"),
        ((x, b), 48, "chunk_size"),
    ]:
        if torch.cuda.is_available():
            assert reason in why_not_fused(*(t.cuda() for t in tensors), size)
        else:
            assert "CUDA" in why_not_fused(*tensors, size)


# d_state, width of a head, heads, groups, tokens, chunk. None: what the plan for that dtype and length says.
GRID = [
    (128, 64, 24, 1, 500, None),
    (64, 64, 14, 1, 500, None),
    (16, 32, 5, 1, 63, None),
    (64, 64, 10, 2, 300, None),
    (128, 64, 3, 1, 500, 16),
    (128, 128, 3, 3, 200, None),
    (24, 40, 3, 1, 129, 32),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", GRID)
def test_the_kernels_on_a_gpu_equal_the_loop(sizes, dtype):
    states, width, heads, groups, length, chunk = sizes
    for decay, documents, call in (
        ("usual", True, {}),
        ("strong", False, dict(with_state=False)),
        ("none", False, dict(with_skip=False)),
        ("none", True, {}),
    ):
        options = dict(heads=heads, width=width, groups=groups, decay=decay, documents=documents)
        check(dtype, "cuda", length, states, chunk, options, call)


@pytest.mark.gpu
def test_fp16_on_a_gpu_equals_the_loop():
    check(torch.float16, "cuda", 300, 64, None, dict(heads=4, width=64, documents=True), {})


@pytest.mark.gpu
def test_a_long_row_on_a_gpu_equals_the_chunked_form():
    """In segments; against PyTorch's chunked form in float64, since the loop would launch some hundred thousand kernels."""
    inputs, _, (dy, dfinal) = draw(20_000, 64, batch=1, heads=2, width=64, decay="none")
    rounded = [t.to(torch.bfloat16).double() if i in (0, 3, 4) else t for i, t in enumerate(inputs)]
    weights = dy.to(torch.bfloat16).double(), dfinal
    wanted = run(rounded, None, weights, backend="torch", dtype=torch.float64, device="cuda")
    found = run(rounded, None, weights, backend="triton", dtype=torch.bfloat16, device="cuda")
    assert_close(found, wanted, BOUND[torch.bfloat16])


@pytest.mark.gpu
def test_two_runs_on_a_gpu_are_equal_to_the_last_bit():
    inputs, borders, weights = draw(500, 128, heads=24, width=64, documents=True)
    call = functools.partial(run, inputs, borders, weights, backend="triton", dtype=torch.bfloat16, device="cuda")
    wanted = call()
    for _ in range(5):
        assert all(map(torch.equal, call(), wanted))


@pytest.mark.gpu
def test_a_compiled_mixer_on_a_gpu(monkeypatch):
    layer = make_mixer(d_state=64).cuda()
    x = torch.randn(2, 300, 128, generator=torch.Generator().manual_seed(2)).cuda()
    monkeypatch.setattr(mamba2, "ssd_scan", functools.partial(ssd_scan, backend="torch"))
    wanted = through(layer, x)
    monkeypatch.setattr(mamba2, "ssd_scan", functools.partial(ssd_scan, backend="triton"))
    compiled = torch.compile(layer, fullgraph=True)
    for call in (None, compiled, lambda x: checkpoint(layer, x, use_reentrant=False)):
        assert max(itertools.starmap(relative, zip(through(layer, x, call), wanted, strict=True))) <= 1e-4
