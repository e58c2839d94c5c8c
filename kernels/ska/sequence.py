"""Sequence-parallel SKA: the sums of earlier ranks' segments become the entering state of this rank's (see
`kernels/sequence.py`)."""

from typing import Any

import torch
from torch import Tensor

from ..documents import document_ids
from ..operator import uncompiled
from ..outer_products import sum_of_outer_products
from ..sequence import SequenceContext, entering_state, known_summary
from .state import SKAState


@uncompiled  # the sums of the first computation are reused when a checkpointed region is recomputed
def enter_segment(k: Tensor, v: Tensor, *, value_lag: bool, context: SequenceContext) -> SKAState:
    """The state before the first token of this rank's segment: the sums over its document on earlier ranks, zero where the
    segment starts a document. One collective forward, one backward.

    Args:
        k: `[B, T, H, R]` this rank's keys; v: `[B, T, H, P]`.

    Returns:
        an `SKAState` with gradients for k and v, those of the ranks before included.
    """
    batch, length, heads, rank = k.shape
    # Sums of half-precision keys are in fp32, as in the operation itself: in half precision their rounding would be far above the
    # ridge.
    dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
    goes_on, unbroken = (mask.to(dtype) for mask in context.edges(batch, length, k.device))
    goes_on = goes_on[..., 0]  # [B, world]

    def combine(entering: tuple[Tensor, ...], summary: tuple[Tensor, ...], i: int) -> tuple[Tensor, ...]:
        gram, transition, value_map, previous = entering
        own_gram, own_transition, own_value_map, first_key, last_key, *first_value = summary
        # The pair across the edge belongs to the later segment.
        transition = transition + first_key[..., :, None] * previous[..., None, :]
        if first_value:
            value_map = value_map + first_value[0][..., :, None] * previous[..., None, :]
        keep = unbroken[:, i, None, None, None]
        cut = goes_on[:, i + 1, None, None, None]
        return (
            cut * (keep * gram + own_gram),
            cut * (keep * transition + own_transition),
            cut * (keep * value_map + own_value_map),
            cut[..., 0] * last_key,
        )

    initial = SKAState.zeros(batch, heads, rank, v.shape[-1], dtype=dtype, device=k.device)
    starts = context.own_starts(batch, length, k.device)
    summary = summarise(k, v, starts, value_lag=value_lag, known=known_summary(context))
    summary = tuple(part.to(dtype) for part in summary)
    return SKAState(*entering_state(summary, initial, combine, context, length))


def summarise(
    k: Tensor, v: Tensor, starts: Tensor | None, *, value_lag: bool, known: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    """The sums over the segment's rows after its last border, its first and its last key, and its first value if lagged.

    Args:
        starts: bool `[B, T]`, the first tokens of documents; None if there are none, or the segment's own first alone.
        known: the result of an earlier time, to get it with gradients and without the sums.

    Returns:
        gram, transition `[B, H, R, R]`, value_map `[B, H, P, R]`, first and last key `[B, H, R]` (, value `[B, H, P]`); the
        sums in fp32 or better, whatever the precision of keys and values.
    """
    kept = paired = None
    if starts is not None:
        ids = document_ids(starts)
        kept = (ids == ids[:, -1:])[..., None, None].to(k.dtype)
        paired = (kept * ~starts[..., None, None])[:, 1:]  # rows whose previous key belongs to the same document
    summary = _Summary.apply(k, v, kept, paired, value_lag, known)
    return summary if value_lag else summary[:-1]


class _Summary(torch.autograd.Function):
    """Autograd function of `summarise`, whose backward pass takes one product per term; autograd alone would allocate and add a
    gradient as large as the keys for every head and slice."""

    @staticmethod
    def forward(
        ctx: Any,
        k: Tensor,
        v: Tensor,
        kept: Tensor | None,
        paired: Tensor | None,
        value_lag: bool,
        known: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, ...]:
        """kept: `[B, T, 1, 1]` 1 for the rows that count; paired: `[B, T - 1, 1, 1]` 1 for those from the second on whose key
        before counts with them; None if all do."""
        ctx.save_for_backward(k, v, kept, paired)
        ctx.value_lag = value_lag
        if known is not None:
            return known if value_lag else (*known, v[:, 0].clone())
        read = _masked(v[:, 1:], paired) if value_lag else _masked(v, kept)
        return (
            sum_of_outer_products(_masked(k, kept), k),
            sum_of_outer_products(_masked(k[:, 1:], paired), k[:, :-1]),
            sum_of_outer_products(read, k[:, :-1] if value_lag else k),
            k[:, 0].clone(),
            k[:, -1].clone(),
            v[:, 0].clone(),
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        k, v, kept, paired = ctx.saved_tensors
        dgram, dtransition, dvalue_map, dfirst, dlast, dfirst_value = (part.to(k.dtype) for part in gradients)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        later, later_values = _masked(k[:, 1:], paired), _masked(v[:, 1:], paired)
        _add_product(dk, _masked(k, kept), dgram + dgram.mT)
        _add_product(dk[:, 1:], _masked(k[:, :-1], paired), dtransition.mT)
        _add_product(dk[:, :-1], later, dtransition)
        if ctx.value_lag:
            _add_product(dk[:, :-1], later_values, dvalue_map)
            _add_product(dv[:, 1:], _masked(k[:, :-1], paired), dvalue_map.mT)
        else:
            _add_product(dk, _masked(v, kept), dvalue_map)
            _add_product(dv, _masked(k, kept), dvalue_map.mT)
        dk[:, 0] += dfirst
        dk[:, -1] += dlast
        dv[:, 0] += dfirst_value
        return dk, dv, None, None, None, None


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _add_product(sums: Tensor, rows: Tensor, matrices: Tensor) -> None:
    """Add in place: sums `[B, T, H, N]` += rows `[B, T, H, M]` times matrices `[B, H, M, N]`, with strided heads as batches, not
    copied."""
    for one, row, matrix in zip(sums, rows, matrices, strict=True):
        one.transpose(0, 1).baddbmm_(row.transpose(0, 1), matrix)
