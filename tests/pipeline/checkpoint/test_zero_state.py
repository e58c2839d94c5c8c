"""AdamW's state as a checkpoint finds it before the first step: what AdamW itself would have made."""

import pytest
import torch

from echo_lm.pipeline.checkpoint.zero_state import _moments


def adamw(parameter: torch.Tensor, fused: bool) -> torch.optim.AdamW:
    return torch.optim.AdamW([parameter], lr=0.1, fused=fused, foreach=not fused)


@pytest.mark.parametrize("fused", [False, True])
def test_the_state_is_as_adamw_makes_it(fused):
    ours, theirs = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    mine, own = adamw(ours, fused), adamw(theirs, fused)
    _moments(mine, ours)
    for parameter, optimizer in ((ours, mine), (theirs, own)):
        parameter.grad = torch.tensor([1.0, 2.0, 3.0])
        optimizer.step()
    assert mine.state[ours].keys() == own.state[theirs].keys()
    for name, value in own.state[theirs].items():
        torch.testing.assert_close(mine.state[ours][name], value, rtol=0, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_the_fused_kernel_finds_its_count_beside_the_parameter(fused):
    """On any device but the CPU the two differ; "meta" is one that is always there."""
    optimizer = adamw(torch.nn.Parameter(torch.ones(3)), fused)
    elsewhere = torch.empty(3, device="meta")
    _moments(optimizer, elsewhere)
    assert optimizer.state[elsewhere]["step"].device.type == ("meta" if fused else "cpu")


@pytest.mark.gpu
def test_the_first_step_after_a_checkpoint_on_a_gpu():
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = adamw(parameter, fused=True)
    for moment in _moments(optimizer, parameter):
        moment.fill_(1.0)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert float(optimizer.state[parameter]["step"]) == 1
    assert (parameter < 1).all()
