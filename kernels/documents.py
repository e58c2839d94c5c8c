"""Document borders in a batch: one convention for every operation of this package.

`cu_seqlens` is an int32 or int64 vector `[documents + 1]` of offsets into the flattened `B*T` tokens, first 0, last
`B*T`. Every row of the batch starts a document whether or not `cu_seqlens` says so, unless the row continues from an
entering state: only the borders inside rows are of interest here.
"""

import torch
from torch import Tensor

from .available import on_gpu


def inner_borders(cu_seqlens: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor | None:
    """Mark the tokens that start a document inside a row; first tokens of rows are not marked.

    Returns:
        bool `[batch, length]`, or None where no row holds a border (on a GPU: where cu_seqlens is None).

    Raises:
        ValueError: `cu_seqlens` is not an increasing integer vector from 0 to `batch * length`. The values are
            checked on the CPU only: on a GPU the check would make the host wait in every layer.
    """
    if cu_seqlens is None:
        return None
    tokens = batch * length
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens must be an int32 or int64 vector of documents + 1 offsets, not {cu_seqlens.dtype} of shape "
            f"{tuple(cu_seqlens.shape)}"
        )
    if not on_gpu(cu_seqlens):
        first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
        if first != 0 or last != tokens or bool((cu_seqlens.diff() <= 0).any()):
            raise ValueError(
                f"cu_seqlens must increase from 0 to batch * length = {tokens}, not run from {first} to {last}"
            )
    starts = torch.zeros(tokens, dtype=torch.bool, device=device)
    starts.index_fill_(0, cu_seqlens[:-1].to(device=device, dtype=torch.int64), True)
    starts = starts.view(batch, length)
    starts[:, 0] = False
    # On a GPU this test would make the host wait for the device.
    return starts if on_gpu(starts) or bool(starts.any()) else None


def document_ids(starts: Tensor) -> Tensor:
    """Number the documents of each row: int64 `[B, T]`, 0 for the one that the row enters with."""
    return starts.cumsum(1)
