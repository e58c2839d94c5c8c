"""SKA over segments: summarise, combine, seed (see `kernels/sequence.py`)."""

import torch
from torch import Tensor

from ..documents import document_ids
from ..outer_products import sum_of_outer_products
from ..sequence import SequenceContext, entering_state
from .chunked import previous_keys
from .state import SKAState


def enter_segment(k: Tensor, v: Tensor, *, value_lag: bool, context: SequenceContext) -> SKAState:
    """The state that this rank's segment is entered with: that of its document on the ranks before, zero where the
    segment starts a document. One collective forward, one backward.

    Args:
        k: `[B, T, H, R]` this rank's keys; v: `[B, T, H, P]`.

    Returns:
        an `SKAState` with gradients for k and v, those of the ranks before included.
    """
    batch, length, heads, rank = k.shape
    # Sums of half-precision keys are in fp32, as those of the operation: the ridge is far below their rounding.
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
    summary = summarise(k, v, context.own_starts(batch, length, k.device), value_lag=value_lag)
    summary = tuple(part.to(dtype) for part in summary)
    return SKAState(*entering_state(summary, initial, combine, context, length))


def summarise(k: Tensor, v: Tensor, starts: Tensor | None, *, value_lag: bool) -> tuple[Tensor, ...]:
    """The sums over the segment's rows after its last border, its first and its last key, and its first value if lagged.

    Args:
        starts: bool `[B, T]`, the first tokens of documents; None if there are none, or the segment's own first alone.

    Returns:
        gram, transition `[B, H, R, R]`, value_map `[B, H, P, R]`, first and last key `[B, H, R]` (, value `[B, H, P]`); the
        sums in fp32 or better, whatever the precision of keys and values.
    """
    previous = previous_keys(k, torch.zeros_like(k[:, 0]), starts)
    kept, kept_values = k, v
    if starts is not None:
        ids = document_ids(starts)
        tail = (ids == ids[:, -1:])[..., None, None]
        kept, kept_values = k * tail, v * tail
    firsts = (k[:, 0], k[:, -1], *((v[:, 0],) if value_lag else ()))
    sums = (
        sum_of_outer_products(kept, k),
        sum_of_outer_products(kept, previous),
        sum_of_outer_products(kept_values, previous if value_lag else k),
    )
    return sums + firsts
