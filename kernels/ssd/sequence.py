"""Sequence-parallel Mamba-2: one message per layer for the scan's state and the convolution's overlap (see
`kernels/sequence.py`).

The scan's state needs the convolution's outputs, and those of a segment's first tokens need inputs of the segment before:
in turn, two messages. One is enough, because all but the first `d_conv - 1` tokens can be summed without the segment
before, and the convolution is linear in what it overlaps: a rank sends what its last inputs add to the next segment's
convolution ("overlap"), and for its own first tokens the convolution of its own inputs and the weight they have in the
state it leaves. The combination finishes those few tokens.

Of a long segment only its tail is left in the state: what came before has decayed to nothing, and is not summed.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..documents import document_ids
from ..operator import uncompiled
from ..outer_products import CHUNK, sum_of_outer_products
from ..sequence import SequenceContext, entering_state
from .convolution import convolve_documents, sum_of_taps

BLOCK = 256  # tokens that are summed side by side with the other blocks
LONG = 16_384  # segments of fewer tokens are summed whole: finding the tail makes the host wait where there is no prediction
SPARE = 16  # a predicted tail is longer than the last one by so many chunks and a quarter


@uncompiled  # the length of the tail depends on data, and there is little else to compile
def enter_segment(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    dt: Tensor,
    a: Tensor,
    *,
    parts: tuple[int, int, int],
    groups: int,
    context: SequenceContext,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contribution of earlier ranks' segments to this one, for the convolution and the scan. One collective forward, one
    backward.

    Args:
        inputs: `[B, T, C]` of the convolution; weight: `[C, 1, W]`, the layer's own tensor; bias: `[C]`.
        dt: `[B, T, H]` step sizes after softplus; a: `[H]`, negative.
        parts: channels of the values (H heads of P), of b and of c (G groups of N each), in the order of Mamba-2.
        groups: G.

    Returns:
        `inputs`, to be read in its place, and by the convolution alone (its gradient is completed in place);
        the activated convolution of the first W - 1 tokens, with the inputs before them, `[B, W - 1, C]` in the dtype of
        `inputs`; and the scan's entering state `[B, H, P, N]` in fp32 (float64 for float64 inputs), zero where the segment
        starts a document.

    Raises:
        ValueError: the segment is shorter than the convolution.
    """
    batch, length, _ = inputs.shape
    reach, heads = weight.shape[-1] - 1, len(a)
    if length <= reach:
        raise ValueError(f"segments must hold at least the convolution's {reach + 1} tokens, not {length}")
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    shape = batch, heads, parts[0] // heads, parts[1] // groups
    starts = context.own_starts(batch, length, inputs.device)
    reached, unbroken = context.edges(batch, length, inputs.device, reach)
    reached = reached.to(dtype)  # [B, world, W - 1]

    def written(convolved: Sequence[Tensor], weights: Tensor) -> Tensor:
        """sum_t weights_t x_t b_t^T: `[B, T, H P]`, `[B, T, G N]` (and c), `[B, T, H]` -> `[B, H, P, N]`."""
        values, b = convolved[0].unflatten(-1, shape[1:3]), convolved[1].unflatten(-1, (groups, -1))
        # The many tokens are multiplied in their own precision and added in fp32, as the scan itself does.
        return sum_of_outer_products((values * weights[..., None]).to(values.dtype), b)

    def combine(entering: tuple[Tensor, ...], summary: tuple[Tensor, ...], i: int) -> tuple[Tensor, ...]:
        overlap, state = entering
        own_overlap, own_state, decay, first, first_weights = summary
        convolved = F.silu(first + overlap[..., : first.shape[-1]]).split(parts[:2], -1)
        state = decay[..., None, None] * state + own_state + written(convolved, first_weights)
        cut = reached[:, i + 1, 0]
        return own_overlap * reached[:, i + 1, :, None], cut[:, None, None, None] * state

    with torch.autocast(inputs.device.type, enabled=False):
        dt, a = dt.to(dtype), a.to(dtype)
        begin = 0
        if length >= LONG:
            begin = context.number(
                weight, dt.shape, lambda: _begin_of_tail(dt, a), lambda found: _sooner(found, length)
            )
        weight = weight.squeeze(1)
        inputs, first, last, tail = _Pieces.apply(inputs, (0, reach), (length - reach, length), (begin, length))
        decay, weights = _decay_to_end(dt[:, begin:], a)
        after = None if starts is None else _in_last_document(starts)
        if after is not None:
            weights = weights * after[:, begin:]
        # A border after the first token stops the entering state here; a border at the first token is handled by the combination.
        decay, first_weights = decay * unbroken[:, context.rank, None], weights[:, :reach]
        if begin > 0:
            decay, first_weights = torch.zeros_like(decay), torch.zeros_like(first_weights)
        # The first tokens are added by the combination; where the tail begins later, their weights are zero.
        weights = F.pad(weights[:, reach:], (0, 0, reach, 0))
        ids = None if starts is None else document_ids(starts[:, begin:])
        own_state = written(convolve_documents(tail, weight, bias, ids, silu=True, parts=parts), weights)
        own_overlap = _overlap(last, weight, after)
        first = _first_outputs(first, weight, bias, starts)
        summary = (own_overlap, own_state, decay, first[..., : sum(parts[:2])], first_weights)
        summary = tuple(part.to(dtype) for part in summary)
        initial = (own_overlap.new_zeros(own_overlap.shape, dtype=dtype), own_state.new_zeros(shape))
        overlap, state = entering_state(summary, initial, combine, context, length)
        first = F.silu(first + overlap)
    return inputs, first.to(inputs.dtype), state


class _Pieces(torch.autograd.Function):
    """Autograd function that returns x `[B, T, C]` and slices of it, from token i to token j. The backward pass adds the
    gradients of the slices in place; plain slicing would allocate a gradient as large as x for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *spans: tuple[int, int]) -> tuple[Tensor, ...]:
        ctx.spans = spans
        return x.view_as(x), *(x[:, i:j] for i, j in spans)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dx: Tensor, *dpieces: Tensor) -> tuple[Tensor | None, ...]:
        for (i, j), piece in zip(ctx.spans, dpieces, strict=True):
            dx[:, i:j] += piece
        return dx, *[None] * len(dpieces)


@torch.no_grad()
def _begin_of_tail(dt: Tensor, a: Tensor) -> Tensor:
    """The first token of the tail that still matters to the state at the segment's end, as a number on the device: of earlier
    tokens, and of a chunk more, less than eps^2 is left."""
    negligible = 2 * math.log(torch.finfo(dt.dtype).eps)
    chunks = F.pad(dt, (0, 0, 0, -dt.shape[1] % CHUNK)).unflatten(1, (-1, CHUNK)).sum(2) * a  # [B, T / CHUNK, H]
    to_end = chunks.flip(1).cumsum(1).flip(1)
    decayed = (to_end.amax((0, 2)) < negligible).sum()
    return CHUNK * (decayed - 2).clamp(min=0)


def _sooner(begin: int, length: int) -> int:
    """The predicted first token of the next batch's tail, if it was `begin` in this one: the tail is taken a quarter and some
    chunks longer."""
    tail = length - begin
    return max(0, length - tail - tail // 4 - SPARE * CHUNK) // CHUNK * CHUNK


def _decay_to_end(dt: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Decay to the segment's end, document borders ignored: of the entering state, `[B, H]`, and of each token's x_t b_t^T,
    `[B, T, H]`."""
    # Summed from the end, so that rounding of the negligible early tokens does not enter the sums of later ones.
    to_end = _sums_to_end(dt * a)
    kept = torch.cat((to_end[:, 1:], torch.zeros_like(to_end[:, :1])), 1).exp()
    return to_end[:, 0].exp(), dt * kept


def _sums_to_end(x: Tensor) -> Tensor:
    """Reversed cumulative sums, sum_{s >= t} x_s: `[B, T, H]` -> `[B, T, H]`.

    By blocks: along T of such a tensor PyTorch sums with a thread a head, some 0.1 s for 500 thousand tokens on a GPU.
    """
    blocks = F.pad(x.mT, (0, -x.shape[1] % BLOCK)).unflatten(2, (-1, BLOCK))
    inside = blocks.flip(3).cumsum(3).flip(3)
    later = inside[..., 0].flip(2).cumsum(2).flip(2)[..., 1:]  # the sums of later blocks
    inside = inside + F.pad(later, (0, 1))[..., None]
    return inside.flatten(2)[..., : x.shape[1]].mT


def _in_last_document(starts: Tensor) -> Tensor:
    """Mask of the tokens in a row's last document, which no border follows: bool `[B, T, 1]`."""
    ids = document_ids(starts)
    return (ids == ids[:, -1:])[..., None]


def _first_outputs(first: Tensor, weight: Tensor, bias: Tensor, starts: Tensor | None) -> Tensor:
    """The convolution of the first W - 1 inputs without what came before: `[B, W - 1, C]`, in fp32 or better."""
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    first = first.to(dtype)
    ids = None if starts is None else document_ids(starts[:, : first.shape[1]])
    return sum_of_taps(first, weight.to(dtype), bias.to(dtype), torch.zeros_like(first), ids)


def _overlap(last: Tensor, weight: Tensor, after: Tensor | None) -> Tensor:
    """The contribution of the last W - 1 inputs to the convolution of the next segment's first W - 1 tokens: `[B, W - 1, C]`, in
    fp32 or better. `after`: `_in_last_document` of the segment."""
    dtype = torch.float64 if last.dtype == torch.float64 else torch.float32
    last = last.to(dtype)
    if after is not None:
        last = last * after[:, after.shape[1] - last.shape[1] :]
    return sum_of_taps(torch.zeros_like(last), weight.to(dtype), None, last, None)
