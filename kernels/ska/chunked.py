"""SKA in PyTorch with one factorisation per chunk: the exact, chunk-causal and prefix forms.

Exact: every token reads from its own operator, itself included, so that training, prefill and decoding are one
function. Chunk-causal (arXiv 2605.06997 §3.3): every token reads from the chunks before its own. Prefix: every token
reads from the whole of its document. All chunks are worked at once; only the sums pass from chunk to chunk.

A border inside a chunk does not split it: rows see the rows of their own document, and the entering state only if they
belong to the document that the chunk was entered with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..documents import document_ids
from ..scan import scan_states
from .read import Mask, read
from .state import SKAState


def ska_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mode: str,
    power: int,
    ridge: float,
    scale: Tensor,
    chunk_size: int,
    value_lag: bool,
    starts: Tensor | None,
    state: SKAState,
    blend: Tensor | None = None,
) -> tuple[Tensor, SKAState]:
    """The chunked form of SKA, with the arguments and results of `ska_naive`."""
    if mode == "prefix":
        options = dict(power=power, ridge=ridge, scale=scale, value_lag=value_lag)
        return _prefix(q, k, v, blend, starts=starts, state=state, **options)
    batch, length, heads, rank = q.shape
    width = v.shape[-1]
    size = min(chunk_size, length) if mode == "exact" else chunk_size
    count = -(-length // size)
    previous = previous_keys(k, state.last_key, starts)
    q, z, z_prev, values = (_chunks(x, count, size) for x in (q, k, previous, v))
    mask, tail, keep = _masks(starts, batch, length, heads, count, size, q)

    kept = z if tail is None else z * tail
    kept_values = values if tail is None else values * tail
    sums = torch.cat((kept.mT @ z, kept.mT @ z_prev, kept_values.mT @ (z_prev if value_lag else z)), 1)
    initial = torch.cat((state.gram, state.transition, state.value_map), 2)
    entering, final = scan_states(sums.view(batch, count, heads, 2 * rank + width, rank), initial, keep)
    gram, transition, value_map = entering.reshape(-1, 2 * rank + width, rank).split((rank, rank, width), 1)
    y = read(
        q,
        z,
        z_prev,
        values,
        gram,
        transition,
        value_map,
        scale.repeat(batch * count)[:, None, None],
        power=power,
        ridge=ridge,
        value_lag=value_lag,
        local=mode == "exact",
        mask=mask,
        blend=None if blend is None else _chunks(blend, count, size),
    )
    y = y.view(batch, count, heads, size, width).transpose(2, 3).reshape(batch, count * size, heads, width)
    gram, transition, value_map = final.split((rank, rank, width), 2)
    return y[:, :length], SKAState(gram, transition, value_map, k[:, -1])


def previous_keys(k: Tensor, last_key: Tensor, starts: Tensor | None) -> Tensor:
    """The keys one position before: `last_key` before the first, zero before a document's first. `[B, T, H, R]`."""
    previous = torch.cat((last_key[:, None], k[:, :-1]), 1)
    return previous if starts is None else previous * ~starts[:, :, None, None]


def _chunks(x: Tensor, count: int, size: int) -> Tensor:
    """`[B, T, H, D]` -> `[B * count * H, size, D]`, filled with zeros, which add nothing to any sum."""
    batch, length, heads, width = x.shape
    if count * size != length:
        x = F.pad(x, (0, 0, 0, 0, 0, count * size - length))
    return x.reshape(batch, count, size, heads, width).transpose(2, 3).reshape(-1, size, width)


def _masks(
    starts: Tensor | None, batch: int, length: int, heads: int, count: int, size: int, like: Tensor
) -> tuple[Mask, Tensor | None, Tensor | None]:
    """The mask of `read`, the rows of each chunk's last document `[n, S, 1]`, the chunks without a border
    `[B, N, 1, 1, 1]`."""
    causal = like.new_ones(size, size).tril()
    if starts is None:
        return Mask(causal, None, batch * count, heads), None, None
    ids = document_ids(F.pad(starts, (0, count * size - length))).view(batch * count, size)
    border = starts.new_zeros(batch, count * size)
    border[:, :length] = starts
    border = border.view(batch * count, size)
    # A chunk whose first token starts a document has an empty entering state.
    entered = ids[:, :1] - border[:, :1].to(ids.dtype)
    old = (ids == entered)[:, None, :, None]
    same = (ids[:, :, None] == ids[:, None, :])[:, None]
    tail = (ids == ids[:, -1:])[:, None, :, None].expand(-1, heads, -1, -1).reshape(-1, size, 1)
    keep = ~border.any(1).view(batch, count, 1, 1, 1)
    return Mask(causal * same, old, batch * count, heads), tail.to(like.dtype), keep.to(like.dtype)


def _prefix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blend: Tensor | None,
    *,
    power,
    ridge,
    scale,
    value_lag,
    starts: Tensor | None,
    state: SKAState,
) -> tuple[Tensor, SKAState]:
    """The prefix form: one operator per document, from which all of its tokens read. Rows that hold several documents are laid
    out as one padded row a document."""
    if starts is not None:
        options = dict(power=power, ridge=ridge, scale=scale, value_lag=value_lag)
        return _prefix_of_documents(q, k, v, blend, starts, state, **options)
    batch, length, heads, _ = q.shape
    queries, z, z_prev, values = (_chunks(x, 1, length) for x in (q, k, previous_keys(k, state.last_key, None), v))
    unflatten = (batch, heads)
    final = SKAState(
        state.gram + (z.mT @ z).unflatten(0, unflatten),
        state.transition + (z.mT @ z_prev).unflatten(0, unflatten),
        state.value_map + (values.mT @ (z_prev if value_lag else z)).unflatten(0, unflatten),
        k[:, -1],
    )
    gram, transition, value_map = (part.flatten(0, 1) for part in final[:3])
    y = read(
        queries,
        z,
        z_prev,
        values,
        gram,
        transition,
        value_map,
        scale.repeat(batch)[:, None, None],
        power=power,
        ridge=ridge,
        value_lag=value_lag,
        local=False,
        mask=Mask(q.new_ones(1, 1), None, batch, heads),
        blend=None if blend is None else _chunks(blend, 1, length),
    )
    return y.view(batch, heads, length, -1).transpose(1, 2), final


def _prefix_of_documents(q, k, v, blend, starts, state, **options) -> tuple[Tensor, SKAState]:
    batch, length = starts.shape
    first = starts.clone()
    first[:, 0] = True
    offsets = first.flatten().nonzero().squeeze(1)
    lengths = torch.diff(offsets, append=offsets.new_tensor([batch * length]))
    position = torch.arange(int(lengths.max()), device=q.device)
    real = position < lengths[:, None]  # [documents, longest]
    source = torch.where(real, offsets[:, None] + position, 0)
    rows = (q, k, v) if blend is None else (q, k, v, blend)
    padded = [x.flatten(0, 1)[source] * real[:, :, None, None] for x in rows]
    padded += [None] * (4 - len(padded))
    row = offsets // length
    continues = offsets % length == 0
    entering = SKAState(*(part[row] * continues.view(-1, *[1] * (part.dim() - 1)) for part in state))
    y, final = _prefix(*padded, starts=None, state=entering, **options)
    last = torch.cat((row[1:] != row[:-1], row.new_ones(1, dtype=torch.bool)))
    gram, transition, value_map = (part[last] for part in final[:3])
    return y[real].view_as(v), SKAState(gram, transition, value_map, k[:, -1])
