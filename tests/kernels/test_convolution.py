"""The fused convolution against PyTorch's: under Triton's interpreter here, on a GPU with `-m gpu`."""

import os
import subprocess
import sys

import pytest
import torch

from echo_lm.kernels.ssd import causal_convolution
from tests.helpers.interpreter import interpreted


def results(backend, dtype, *, length, channels, bias, silu, borders, parts=None, given=False, device="cpu", rows=3):
    """Output and gradients of a strided x, of weight, of bias and of what is `given` for the first tokens, drawn in float64."""
    generator = torch.Generator().manual_seed(length)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide, weight, b, dy = (
        randn(rows, length, channels + 5),
        randn(channels, 4),
        randn(channels),
        randn(rows, length, channels),
    )
    wide, weight, b, dy = (
        t.to(dtype).to(device, torch.float64 if backend == "torch" else dtype) for t in (wide, weight, b, dy)
    )
    # Behind the rows lies what must not be read.
    wide = torch.cat((wide, torch.full_like(wide, torch.nan)))
    first = randn(rows, 3, channels).to(dtype).to(wide)
    leaves = [wide.requires_grad_(), weight.requires_grad_()]
    leaves += [b.requires_grad_()] * bias + [first.requires_grad_()] * given
    cu_seqlens = torch.tensor(
        [0, 1, *(rows * length * torch.rand(6, generator=generator)).int().unique().clamp(2).unique(), rows * length]
    )
    y = causal_convolution(
        wide[:rows, :, 2 : 2 + channels],
        weight,
        b if bias else None,
        first=first if given else None,
        cu_seqlens=cu_seqlens.to(device) if borders else None,
        silu=silu,
        parts=parts,
        backend=backend,
    )
    y = torch.cat(y, -1) if parts else y
    return [y, *torch.autograd.grad(y, leaves, dy)]


def check(dtype, bound, device, sizes):
    for length, channels in sizes:
        for silu, borders, bias in ((True, False, True), (False, True, True), (True, True, False)):
            for given in {False, length > 3}:
                check_one(dtype, bound, device, length, channels, silu, borders, bias, given)


def check_one(dtype, bound, device, length, channels, silu, borders, bias, given, rows=3):
    case = dict(
        length=length, channels=channels, bias=bias, silu=silu, borders=borders, device=device, given=given, rows=rows
    )
    if silu and channels > 3:
        case["parts"] = channels - 3, 2, 1
    wanted, found = (results(backend, dtype, **case) for backend in ("torch", "triton"))
    names = "y", "dx", "dweight", *["dbias"] * bias, *["dfirst"] * given
    for name, a, b in zip(names, found, wanted, strict=True):
        error = float((a.double() - b).norm() / b.norm().clamp(min=1e-9))
        assert error <= bound, (case, name, error)


def test_the_kernels_under_the_interpreter_equal_pytorch():
    """All mixtures within one program a row, one of them in two pieces of a row by two blocks of channels."""
    code = """
import torch
from tests.kernels import test_convolution
torch.set_num_threads(1)
test_convolution.check(torch.float32, 1e-6, "cpu", ((1, 3), (5, 8)))
test_convolution.check_one(torch.float32, 1e-6, "cpu", 70, 130, True, True, True, True, rows=1)
"""
    interpreted(code)


def test_activation_in_the_convolution_is_activation_behind_it():
    x, weight, bias = torch.randn(2, 9, 3), torch.randn(3, 4), torch.randn(3)
    apart = torch.nn.functional.silu(causal_convolution(x, weight, bias))
    torch.testing.assert_close(causal_convolution(x, weight, bias, silu=True), apart)


def test_given_tokens_stand_in_place_of_the_first():
    x, weight, first = torch.randn(2, 9, 3), torch.randn(3, 4), torch.randn(2, 3, 3)
    y = causal_convolution(x, weight, first=first)
    torch.testing.assert_close(y, torch.cat((first, causal_convolution(x, weight)[:, 3:]), 1))
    with pytest.raises(ValueError, match=r"first must be \[2, 3, 3\] of at least as many tokens, not \[2, 3, 3\] of 2"):
        causal_convolution(x[:, :2], weight, first=first)


def test_what_the_kernels_do_not_take_is_said():
    with pytest.raises(ValueError, match="CUDA"):
        causal_convolution(torch.randn(2, 9, 3), torch.randn(3, 4), backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_the_kernels_on_a_gpu_equal_pytorch(dtype, bound):
    check(dtype, bound, "cuda", ((1, 3), (63, 5), (70, 130), (500, 1024)))


def test_the_operator_is_fit_for_torch_compile():
    code = """
import torch
from torch.library import opcheck
import echo_lm.kernels.ssd.convolution_kernels
x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((1, 5, 8), (8, 4), (8,)))
opcheck(torch.ops.echo_lm.convolve.default, (x, weight, bias, None, None, True, [5, 2, 1]))
opcheck(torch.ops.echo_lm.convolve.default, (x, weight, bias, None, x[:, :3], True, [5, 2, 1]))
"""
    interpreted(code)


def test_the_compiler_keeps_every_value_that_the_loop_hands_on():
    """Triton 3.6 folded two of them into a third where they began alike and were only handed on: right under the
    interpreter, wrong on the GPU. Compiling needs no GPU."""
    code = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
target = GPUTarget("cuda", 90, 32)
driver.set_active(type("NoGPU", (), {"get_current_target": staticmethod(lambda: target)})())
from echo_lm.kernels.ssd.convolution_kernels import convolve_backward as kernel
sizes = dict(C=8, STRIDE=8, X=8, N=0, PIECE=64, COLUMNS=128, BIAS=True, SILU=True, DOCUMENTS=False, GIVEN=0)
constants = dict(sizes, p_ids=None)
kinds = {name: "constexpr" if name in constants else "*fp32" for name in kernel.arg_names} | dict(T="i32")
source = ASTSource(kernel, kinds, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
compiled = triton.compile(source, target=target, options=dict(num_warps=1))
(loop,) = re.findall(r"scf.for .*?iter_args\\((.*?)\\)", compiled.asm["ttgir"])
print(loop.count("="))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=500)
    # Three inputs, three gradients that are not complete, those of four weights and a bias, and two tiles loaded ahead.
    assert done.stdout.strip() == "13", done.stdout + done.stderr[-2000:]
