"""The decode kernel against the PyTorch step and the parallel form, and what it leaves in the state."""

import pytest
import torch
import torch.nn.functional as F

from echo_lm.kernels.ska import SKAState, ska_attention, ska_step, start_decoding
from tests.helpers.interpreter import interpreted


def check(cases, device="cpu"):
    """Each case (rank, width, power, lag, mode, tokens, dtype): the kernel's y and state against float64."""
    for rank, width, power, lag, mode, tokens, dtype in cases:
        generator = torch.Generator().manual_seed(0)
        shapes = [(2, tokens, 3, rank)] * 2 + [(2, tokens, 3, width)]
        q, k, v = (torch.randn(s, generator=generator).to(device) for s in shapes)
        q, k, v = (x.to(dtype) for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v))
        scale = torch.linspace(0.5, 1.2, 3, device=device)
        options = dict(power=power, scale=scale, value_lag=lag, chunk_size=16)
        wide = [x.double() for x in (q, k, v)]
        want, final = ska_attention(*wide, mode=mode, return_state=True, **dict(options, scale=scale.double()))
        found = {}
        for backend in ("torch", "triton"):
            empty = SKAState.zeros(2, 3, rank, width, device=device)
            grid = dict(visible=empty, position=torch.zeros(2, dtype=torch.int64, device=device))
            state = start_decoding(empty, ridge=1e-3, **(grid if mode == "chunk" else {}))
            steps = [ska_step(q[:, t], k[:, t], v[:, t], state, backend=backend, **options) for t in range(tokens)]
            errors = [float((torch.stack(steps, 1).double() - want).norm() / want.norm())]
            errors += [float((a.double() - b).norm() / b.norm()) for a, b in zip(state.sums, final, strict=True)]
            found[backend] = errors, state.inverse.double()
        bound = 1e-4 if dtype == torch.float32 else 8e-3
        (torch_errors, torch_inverse), (errors, inverse) = found["torch"], found["triton"]
        assert errors[0] <= max(bound, 3 * torch_errors[0]), (rank, width, power, lag, mode, errors, torch_errors)
        assert max(errors[1:]) <= 1e-6, (rank, width, power, lag, mode, errors)
        assert (inverse - torch_inverse).norm() <= 1e-4 * torch_inverse.norm()


def test_the_kernel_under_the_interpreter_equals_the_parallel_form():
    interpreted(
        """
import torch
from tests.kernels import test_ska_decode as t
torch.set_num_threads(1)
t.check([(24, 17, power, power % 2 == 0, "exact", 8, torch.float32) for power in (0, 1, 4)]
    + [(8, 5, 1, lag, "chunk", 34, torch.float32) for lag in (False, True)]
    + [(72, 33, 1, False, "exact", 6, torch.float32)])
"""
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "width"), [(48, 64), (24, 32), (56, 64), (96, 64), (128, 128), (48, 17)])
def test_the_kernel_on_a_gpu_equals_the_parallel_form(rank, width, dtype):
    check([(rank, width, p, p == 0, mode, 100, dtype) for p in (0, 1, 4) for mode in ("exact", "chunk")], "cuda")


def test_a_clone_is_left_alone():
    empty = SKAState.zeros(1, 1, 4, 4)
    state = start_decoding(empty, ridge=1e-3, visible=empty, position=torch.zeros(1, dtype=torch.int64))
    copy = state.clone()
    ska_step(*torch.ones(3, 1, 1, 4), state)
    assert state.sums.gram.any()
    assert state.position == 1
    assert not state.visible.gram.any()
    assert not copy.sums.gram.any()
    assert not empty.gram.any()
    assert copy.position == 0


def test_what_the_kernel_does_not_take_is_said():
    state = start_decoding(SKAState.zeros(1, 1, 4, 4, dtype=torch.float64), ridge=1e-3)
    with pytest.raises(ValueError, match="a state in fp32"):
        ska_step(*torch.ones(3, 1, 1, 4), state, backend="triton")
    with pytest.raises(ValueError, match="backend"):
        ska_step(*torch.ones(3, 1, 1, 4), state, backend="cuda")
