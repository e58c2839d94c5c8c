"""Inputs shifted by a few positions, for layers that combine each token with the tokens just before it."""

import torch
from torch import Tensor

from ...kernels.documents import document_ids
from ...kernels.sequence import SequenceContext, gather_segments


def delayed(x: Tensor, steps: int, before: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
    """Shift a sequence by `steps` positions: `[B, T, D]` -> `[B, T, D]`, zero before a document's first token.

    Args:
        before: `[B, m, D]` with m >= steps, the last rows before these; None: there are none.
        starts: bool `[B, T]`, first tokens of documents inside rows; see `inner_borders`.
    """
    if not steps:
        return x
    batch, length, width = x.shape
    before = x.new_zeros(batch, steps, width) if before is None else before[:, before.shape[1] - steps :]
    rows = torch.cat((before, x), 1)[:, :length]
    if starts is None:
        return rows
    ids = document_ids(starts)
    earlier = torch.cat((ids.new_zeros(batch, steps), ids), 1)[:, :length]
    return rows * (ids == earlier)[..., None]


def latest(x: Tensor, count: int, before: Tensor, real: Tensor) -> Tensor:
    """The last `count` real rows of `before` `[B, count, D]` followed by x `[B, T, D]`; `real` `[B, T]` is False at padding, which
    stands at row ends."""
    rows = torch.cat((before, x), 1)
    places = real.sum(1, keepdim=True) + torch.arange(count, device=x.device)
    return rows.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def rows_before(x: Tensor, count: int, context: SequenceContext | None) -> Tensor | None:
    """Under sequence parallelism, the last `count` rows of the previous rank's segment: `[B, T, D]` -> `[B, count, D]`, zeros
    for the first segment and for rows of a document that ends before the segment does; None where rows are whole or no row is
    wanted. One small all-gather, and in the backward pass one reduce-scatter.

    Raises:
        ValueError: segments are shorter than `count`.
    """
    if not count or context is None or context.world == 1:
        return None
    if x.shape[1] < count:
        raise ValueError(f"segments must hold at least the {count} tokens that a delay looks back, not {x.shape[1]}")
    batch, length, _ = x.shape
    gathered = gather_segments(x[:, length - count :], context)
    if not context.rank:  # times zero: every rank takes part in the backward collective
        return gathered[0] * 0
    starts = context.starts(batch, length, x.device)
    if starts is None:
        return gathered[context.rank - 1]
    ids = document_ids(starts[:, context.rank - 1, length - count :])
    return gathered[context.rank - 1] * (ids == ids[:, -1:])[..., None]
