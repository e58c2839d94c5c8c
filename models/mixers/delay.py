"""Rows of a few positions before: what a layer takes of the last tokens beside its own."""

import torch
from torch import Tensor

from ...kernels.documents import document_ids


def delayed(x: Tensor, steps: int, before: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
    """The rows `steps` positions before: `[B, T, D]` -> `[B, T, D]`, zero before a document's first token.

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
