"""The exclusive scan of states over chunks: state <- decay * state + sum."""

import torch
from torch import Tensor


class Scan(torch.autograd.Function):
    """Autograd function of `scan_states`; its backward pass is the same recurrence from the last chunk to the first."""

    @staticmethod
    def forward(ctx, sums, initial, decay):
        entering = torch.empty_like(sums)
        state = initial
        for chunk in range(sums.shape[1]):
            entering[:, chunk] = state
            state = state + sums[:, chunk] if decay is None else torch.addcmul(sums[:, chunk], state, decay[:, chunk])
        ctx.save_for_backward(decay, entering)
        return entering, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dentering, dfinal):
        decay, entering = ctx.saved_tensors
        dsums = torch.empty_like(dentering)
        dstate = dfinal
        for chunk in range(dentering.shape[1] - 1, -1, -1):
            dsums[:, chunk] = dstate
            dstate = dentering[:, chunk] + (dstate if decay is None else dstate * decay[:, chunk])
        ddecay = None
        if decay is not None and ctx.needs_input_grad[2]:
            ddecay = (dsums * entering).sum_to_size(decay.shape)
        return dsums, dstate, ddecay


def scan_states(sums: Tensor, initial: Tensor, decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states before each chunk and after the last, from what each chunk adds.

    Args:
        sums: `[B, N, ...]`, what each chunk adds.
        initial: `[B, ...]`, the state before the first chunk.
        decay: `[B, N, ...]` or broadcast to it, how much of its entering state a chunk leaves; None: all of it.

    Returns:
        entering `[B, N, ...]` and final `[B, ...]`.
    """
    return Scan.apply(sums, initial, decay)
