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
from ..outer_products import sum_of_outer_products
from ..sequence import SequenceContext, entering_state
from .convolution import sum_of_taps

BLOCK = 256  # tokens that are summed side by side with the other blocks


def enter_segment(
    inputs: Tensor,
    values: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    dt: Tensor,
    a: Tensor,
    *,
    context: SequenceContext,
) -> tuple[Tensor, Tensor]:
    """What the segments before add to this one. One collective forward, one backward.

    Channels are ordered as in Mamba-2: values (H heads of P), then b and c (G groups of N each).

    Args:
        inputs: `[B, T, C]` of the convolution; weight: `[C, W]`; bias: `[C]`.
        values: `[B, T, H, P]`; b: `[B, T, G, N]`: the convolution of this rank's inputs alone, activated, borders cut.
        dt: `[B, T, H]` step sizes after softplus; a: `[H]`, negative.

    Returns:
        the activated convolution of the first W - 1 tokens, with the inputs before them, `[B, W - 1, C]` in the dtype of
        `inputs`, and the scan's entering state `[B, H, P, N]` in fp32 (float64 for float64 inputs), zero where the segment
        starts a document.

    Raises:
        ValueError: the segment is shorter than the convolution.
    """
    batch, length, _ = inputs.shape
    taps = weight.shape[-1]
    if length < taps:
        raise ValueError(f"segments must hold at least the convolution's {taps} tokens, not {length}")
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    shape = (batch, *values.shape[2:], b.shape[-1])
    sizes = values[0, 0].numel(), b[0, 0].numel()
    starts = context.own_starts(batch, length, inputs.device)
    reached, unbroken = context.edges(batch, length, inputs.device, taps - 1)
    reached = reached.to(dtype)  # [B, world, W - 1]

    def combine(entering: tuple[Tensor, ...], summary: tuple[Tensor, ...], i: int) -> tuple[Tensor, ...]:
        overlap, state = entering
        own_overlap, own_state, decay, first, first_weights = summary
        x, b_first = F.silu(first + overlap[..., : first.shape[-1]]).split(sizes, -1)
        written = _written(x.unflatten(-1, shape[1:3]), b_first.unflatten(-1, b.shape[2:]), first_weights)
        state = decay[..., None, None] * state + own_state + written
        cut = reached[:, i + 1, 0]
        return own_overlap * reached[:, i + 1, :, None], cut[:, None, None, None] * state

    with torch.autocast(inputs.device.type, enabled=False):
        steps = dt.to(dtype) * a.to(dtype)
        decay, to_end = _decay_to_end(steps, starts)
        # An entering state is cut by a border behind the first token; one on it cuts it in the combination.
        decay = decay * unbroken[:, context.rank, None]
        weights = dt.to(dtype) * to_end
        # The many tokens are multiplied in their own precision and added in fp32, as the scan itself does. The first ones
        # weigh nothing here: without them the rows would be of an odd length, and copied.
        own_state = _written(values, b, F.pad(weights[:, taps - 1 :], (0, 0, taps - 1, 0)))
        own_overlap = _overlap(inputs, weight, starts)
        first = _first_outputs(inputs, weight, bias, starts)
        summary = (own_overlap, own_state, decay, first[..., : sum(sizes)], weights[:, : taps - 1])
        summary = tuple(part.to(dtype) for part in summary)
        initial = (own_overlap.new_zeros(own_overlap.shape, dtype=dtype), own_state.new_zeros(shape))
        overlap, state = entering_state(summary, initial, combine, context, length)
        first = F.silu(first + overlap)
    return first.to(inputs.dtype), state


def _written(x: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """sum_t weights_t x_t b_t^T: `[B, T, H, P]`, `[B, T, G, N]`, `[B, T, H]` -> `[B, H, P, N]`."""
    return sum_of_outer_products((x * weights[..., None]).to(x.dtype), b)


@torch.compiler.disable  # torch 2.11's compiler fails on a cumulative sum over rows of one document each ([1, T, H])
def _decay_to_end(steps: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """How much of what enters the segment and of each token's write is left after it, borders inside it aside.

    Args:
        steps: `[B, T, H]`, log of each token's decay; starts: bool `[B, T]`, or None.

    Returns:
        `[B, H]`, and `[B, T, H]`, zero where a border follows.
    """
    # Summed from the end, so that the tokens that still count do not carry the rounding of those that do not.
    to_end = _sums_to_end(steps)
    kept = torch.cat((to_end[:, 1:], torch.zeros_like(to_end[:, :1])), 1).exp()
    return to_end[:, 0].exp(), kept if starts is None else kept * _in_last_document(starts)


def _sums_to_end(x: Tensor) -> Tensor:
    """sum_{s >= t} x_s: `[B, T, H]` -> `[B, T, H]`.

    By blocks: along T of such a tensor PyTorch sums with a thread a head, some 0.1 s for 500 thousand tokens on a GPU.
    """
    blocks = F.pad(x.mT, (0, -x.shape[1] % BLOCK)).unflatten(2, (-1, BLOCK))
    inside = blocks.flip(3).cumsum(3).flip(3)
    later = inside[..., 0].flip(2).cumsum(2).flip(2)[..., 1:]  # what the blocks behind this one add
    inside = inside + F.pad(later, (0, 1))[..., None]
    return inside.flatten(2)[..., : x.shape[1]].mT


def _in_last_document(starts: Tensor) -> Tensor:
    """bool `[B, T, 1]`: no border follows."""
    ids = document_ids(starts)
    return (ids == ids[:, -1:])[..., None]


def _first_outputs(inputs: Tensor, weight: Tensor, bias: Tensor, starts: Tensor | None) -> Tensor:
    """The convolution of the first W - 1 tokens without what came before: `[B, W - 1, C]`, in fp32 or better."""
    reach = weight.shape[-1] - 1
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    first = inputs[:, :reach].to(dtype)
    ids = None if starts is None else document_ids(starts[:, :reach])
    return sum_of_taps(first, weight.to(dtype), bias.to(dtype), torch.zeros_like(first), ids)


def _overlap(inputs: Tensor, weight: Tensor, starts: Tensor | None) -> Tensor:
    """What the last W - 1 inputs add to the convolution of the next segment's first W - 1 tokens: `[B, W - 1, C]`, in
    fp32 or better."""
    reach = weight.shape[-1] - 1
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    last = inputs[:, inputs.shape[1] - reach :].to(dtype)
    if starts is not None:
        last = last * _in_last_document(starts)[:, inputs.shape[1] - reach :]
    return sum_of_taps(torch.zeros_like(last), weight.to(dtype), None, last, None)
