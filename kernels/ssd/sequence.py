"""Mamba-2 over segments: summarise, combine, seed, convolution included (see `kernels/sequence.py`).

The scan's state needs the convolution's outputs, and those of a segment's first tokens need inputs of the segment before:
in turn, two messages. One is enough, because all but the first `d_conv - 1` tokens can be summed without the segment
before, and the convolution is linear in what it overlaps: a rank sends what its last inputs add to the next segment's
convolution ("overlap"), and for its own first tokens the convolution of its own inputs and the weight they have in the
state it leaves. The combination finishes those few tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..documents import document_ids
from ..sequence import SequenceContext, entering_state
from .convolution import causal_convolution
from .outer_products import sum_of_outer_products


def enter_segment(
    convolved: Tensor,
    inputs: Tensor,
    weight: Tensor,
    dt: Tensor,
    a: Tensor,
    *,
    groups: int,
    d_state: int,
    context: SequenceContext,
) -> tuple[Tensor, Tensor]:
    """What the segments before add to this one. One collective forward, one backward.

    Channels are ordered as in Mamba-2: values (H heads of P), then b and c (G groups of N each).

    Args:
        convolved: `[B, T, C]`, the causal convolution of this rank's inputs alone, before its activation, borders cut.
        inputs: `[B, T, C]` of the convolution; weight: `[C, W]`.
        dt: `[B, T, H]` step sizes after softplus; a: `[H]`, negative.

    Returns:
        overlap `[B, W - 1, C]`, to be added to the first rows of `convolved`, in its dtype, and the scan's entering
        state `[B, H, P, N]` in fp32 (float64 for float64 inputs). Both zero where the segment starts a document.

    Raises:
        ValueError: the segment is shorter than the convolution.
    """
    batch, length, _ = inputs.shape
    channels, taps = weight.shape
    if length < taps:
        raise ValueError(f"segments must hold at least the convolution's {taps} tokens, not {length}")
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    heads, inner = dt.shape[-1], channels - 2 * groups * d_state
    shape = (batch, heads, inner // heads, d_state)
    starts = context.own_starts(batch, length, inputs.device)
    reached, unbroken = context.edges(batch, length, inputs.device, taps - 1)
    reached = reached.to(dtype)  # [B, world, W - 1]

    def written(convolved: Tensor, weights: Tensor) -> Tensor:
        """sum_t weights_t x_t b_t^T: `[B, T, C]`, `[B, T, H]` -> `[B, H, P, N]`."""
        x, b = F.silu(convolved).split((inner, groups * d_state), -1)
        x = (x.unflatten(-1, (heads, -1)) * weights[..., None]).to(x.dtype)
        return sum_of_outer_products(x, b.unflatten(-1, (groups, d_state)))

    def combine(entering: tuple[Tensor, ...], summary: tuple[Tensor, ...], i: int) -> tuple[Tensor, ...]:
        overlap, state = entering
        own_overlap, own_state, decay, first, first_weights = summary
        state = (
            decay[..., None, None] * state + own_state + written(first + overlap[..., : first.shape[-1]], first_weights)
        )
        cut = reached[:, i + 1, 0]
        return own_overlap * reached[:, i + 1, :, None], cut[:, None, None, None] * state

    with torch.autocast(inputs.device.type, enabled=False):
        steps = dt.to(dtype) * a.to(dtype)
        decay, to_end = _decay_to_end(steps, starts)
        # An entering state is cut by a border behind the first token; one on it cuts it in the combination.
        decay = decay * unbroken[:, context.rank, None]
        weights = dt.to(dtype) * to_end
        keys = convolved[..., : inner + groups * d_state]
        # The many tokens are multiplied in their own precision and added in fp32, as the scan itself does.
        own_state = written(keys[:, taps - 1 :], weights[:, taps - 1 :])
        own_overlap = _overlap(inputs, weight, starts)
        summary = (own_overlap, own_state, decay, keys[:, : taps - 1], weights[:, : taps - 1])
        summary = tuple(part.to(dtype) for part in summary)
        initial = (own_overlap.new_zeros(own_overlap.shape, dtype=dtype), own_state.new_zeros(shape))
        overlap, state = entering_state(summary, initial, combine, context, length)
    return overlap.to(convolved.dtype), state


@torch.compiler.disable  # torch 2.11's compiler fails on a cumulative sum over rows of one document each ([1, T, H])
def _decay_to_end(steps: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """How much of what enters the segment and of each token's write is left after it, borders inside it aside.

    Args:
        steps: `[B, T, H]`, log of each token's decay; starts: bool `[B, T]`, or None.

    Returns:
        `[B, H]`, and `[B, T, H]`, zero where a border follows.
    """
    # Summed from the end, so that the tokens that still count do not carry the rounding of those that do not.
    to_end = steps.flip(1).cumsum(1).flip(1)
    kept = torch.cat((to_end[:, 1:], torch.zeros_like(to_end[:, :1])), 1).exp()
    return to_end[:, 0].exp(), kept if starts is None else kept * _in_last_document(starts)


def _in_last_document(starts: Tensor) -> Tensor:
    """bool `[B, T, 1]`: no border follows."""
    ids = document_ids(starts)
    return (ids == ids[:, -1:])[..., None]


def _overlap(inputs: Tensor, weight: Tensor, starts: Tensor | None) -> Tensor:
    """What the last W - 1 inputs add to the convolution of the next segment's first W - 1 tokens: `[B, W - 1, C]`, in
    fp32 or better."""
    reach = weight.shape[-1] - 1
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    last = inputs[:, inputs.shape[1] - reach :].to(dtype)
    if starts is not None:
        last = last * _in_last_document(starts)[:, inputs.shape[1] - reach :]
    return causal_convolution(F.pad(last, (0, 0, 0, reach)), weight.to(dtype))[:, reach:]
