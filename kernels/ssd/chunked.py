"""Mamba-2's state-space duality in PyTorch (arXiv 2405.21060 §6): attention-like inside chunks, a scan between them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..documents import document_ids
from ..scan import scan_states


def ssd_chunked(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, chunk_size: int, starts: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The chunked form of the Mamba-2 scan, with the arguments and results of `ssd_naive`; autograd gives the backward pass."""
    batch, length, heads, width = x.shape
    groups, size = b.shape[2], min(chunk_size, length)
    count = -(-length // size)
    share = heads // groups

    # dt = 0 in the fill leaves the state as it is.
    x, b, c = (_chunks(t, count, size) for t in (x, b, c))  # [B, N, H or G, S, *]
    dt = _chunks(dt[..., None], count, size)  # [B, N, H, S, 1]
    decay = (dt * a[:, None, None]).squeeze(-1).cumsum(-1)  # [B, N, H, S], log of the decay since the chunk's entry
    last = decay[..., -1:]

    seen = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    to_end, from_entry, kept = (last - decay).exp(), decay.exp(), last.exp()
    if starts is not None:
        ids = document_ids(F.pad(starts, (0, count * size - length))).view(batch, count, 1, size)
        entered = torch.cat((ids.new_zeros(batch, 1, 1, 1), ids[:, :-1, :, -1:]), 1)
        seen = seen & (ids[..., :, None] == ids[..., None, :])
        to_end = to_end * (ids == ids[..., -1:])
        from_entry = from_entry * (ids == entered)
        kept = kept * (ids[..., -1:] == entered)

    dx = x * dt
    sums = (dx * to_end[..., None]).mT @ _to_heads(b, share)  # [B, N, H, P, N_state]
    entering, final = scan_states(sums, state, kept[..., None])
    # -inf before exp: above the diagonal the difference is positive and would overflow.
    weights = (decay[..., :, None] - decay[..., None, :]).masked_fill(~seen, -torch.inf).exp()
    weights = weights * _to_heads(c @ b.mT, share)
    y = weights @ dx + from_entry[..., None] * (_to_heads(c, share) @ entering.mT)
    return y.transpose(2, 3).reshape(batch, count * size, heads, width)[:, :length], final


def _chunks(x: Tensor, count: int, size: int) -> Tensor:
    """`[B, T, H, D]` -> `[B, count, H, size, D]`, filled with zeros."""
    batch, length = x.shape[:2]
    if count * size != length:
        x = F.pad(x, (0, 0, 0, 0, 0, count * size - length))
    return x.reshape(batch, count, size, *x.shape[2:]).transpose(2, 3).contiguous()


def _to_heads(x: Tensor, share: int) -> Tensor:
    """Give every head its group's matrix: `[B, N, G, ...]` -> `[B, N, H, ...]` (one group: by broadcasting)."""
    return x if x.shape[2] == 1 or share == 1 else x.repeat_interleave(share, 2)
