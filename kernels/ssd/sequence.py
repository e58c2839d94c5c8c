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

CHUNK = 256  # tokens summed in one product: sums of sums keep fp32 accurate over long segments


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
    starts = context.starts(batch, length, inputs.device)
    goes_on = (~starts[:, :, 0]).to(dtype)  # [B, world]
    reached = (starts[..., : taps - 1].cumsum(-1) == 0).to(dtype)  # [B, world, W - 1]: no border up to there

    def written(convolved: Tensor, weights: Tensor) -> Tensor:
        """sum_t weights_t x_t b_t^T: `[B, T, C]`, `[B, T, H]` -> `[B, H, P, N]`."""
        x, b = F.silu(convolved).split((inner, groups * d_state), -1)
        x = x.unflatten(-1, (heads, -1)) * weights[..., None]
        return _outer(x, b.unflatten(-1, (groups, d_state)))

    def combine(entering: tuple[Tensor, ...], summary: tuple[Tensor, ...], i: int) -> tuple[Tensor, ...]:
        overlap, state = entering
        own_overlap, own_state, decay, first, first_weights = summary
        state = (
            decay[..., None, None] * state + own_state + written(first + overlap[..., : first.shape[-1]], first_weights)
        )
        cut = goes_on[:, i + 1]
        return own_overlap * reached[:, i + 1, :, None], cut[:, None, None, None] * state

    with torch.autocast(inputs.device.type, enabled=False):
        steps = dt.to(dtype) * a.to(dtype)
        decay, to_end = _decay_to_end(steps, starts[:, context.rank])
        weights = dt.to(dtype) * to_end
        keys = convolved[..., : inner + groups * d_state].to(dtype)
        own_state = written(keys[:, taps - 1 :], weights[:, taps - 1 :])
        own_overlap = _overlap(inputs.to(dtype), weight.to(dtype), starts[:, context.rank])
        summary = (own_overlap, own_state, decay, keys[:, : taps - 1], weights[:, : taps - 1])
        initial = (own_overlap.new_zeros(own_overlap.shape), own_state.new_zeros(shape))
        overlap, state = entering_state(summary, initial, combine, context, length)
    return overlap.to(convolved.dtype), state


def _decay_to_end(steps: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the entering state and of each token's write is left after the segment.

    Args:
        steps: `[B, T, H]`, log of each token's decay; starts: bool `[B, T]`.

    Returns:
        `[B, H]` and `[B, T, H]`, zero where a border follows.
    """
    # Summed from the end, so that the tokens that still count do not carry the rounding of those that do not.
    to_end = steps.flip(1).cumsum(1).flip(1)
    ids = document_ids(starts)
    last = (ids == ids[:, -1:])[..., None]
    kept = torch.cat((to_end[:, 1:], torch.zeros_like(to_end[:, :1])), 1).exp()
    # A border on the first token cuts the entering state too, but that is zero already.
    unbroken = ~starts[:, 1:].any(1, keepdim=True)
    return to_end[:, 0].exp() * unbroken, kept * last


def _overlap(inputs: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    """What the last W - 1 inputs add to the convolution of the next segment's first W - 1 tokens: `[B, W - 1, C]`."""
    reach = weight.shape[-1] - 1
    ids = document_ids(starts)
    last = (inputs * (ids == ids[:, -1:])[..., None])[:, inputs.shape[1] - reach :]
    return causal_convolution(F.pad(last, (0, 0, 0, reach)), weight)[:, reach:]


def _outer(x: Tensor, b: Tensor) -> Tensor:
    """sum_t x_t b_t^T, each group serving H / G heads: `[B, T, H, P]`, `[B, T, G, N]` -> `[B, H, P, N]`."""
    size = min(CHUNK, x.shape[1])
    fill = -x.shape[1] % size
    x, b = (F.pad(t, (0, 0, 0, 0, 0, fill)).unflatten(1, (-1, size)) for t in (x, b))
    x = x.unflatten(3, (b.shape[3], -1))
    return torch.einsum("bctgkp,bctgn->bcgkpn", x, b).sum(1).flatten(1, 2)
