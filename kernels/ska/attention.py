"""The public operation `ska_attention`: checks of its arguments, defaults, and the choice of an implementation."""

from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from ..documents import inner_borders
from ..operator import without_autocast
from ..sequence import SequenceContext
from .chunked import ska_chunked
from .fused import ska_fused, why_not_fused
from .naive import ska_naive
from .sequence import enter_segment
from .state import SKAState

Mode = Literal["exact", "chunk", "prefix"]
Backend = Literal["auto", "naive", "torch", "triton"]

IMPLEMENTATIONS = {"naive": ska_naive, "torch": ska_chunked, "triton": ska_fused}


class ReadOptions(TypedDict):
    """Options that `ska_attention` and `ska_step` share."""

    power: int
    ridge: float
    scale: float | Tensor
    chunk_size: int
    value_lag: bool


class SKAOptions(TypedDict, total=False):
    """The options of `ska_attention`, described there; typed once for its overloads."""

    mode: Mode
    power: int
    ridge: float
    scale: float | Tensor
    chunk_size: int | None
    value_lag: bool
    blend: Tensor | None
    mask: Tensor | None
    state: SKAState | None
    cu_seqlens: Tensor | None
    context: SequenceContext | None
    backend: Backend


@overload
def ska_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_state: Literal[False] = False, **options: Unpack[SKAOptions]
) -> Tensor: ...


@overload
def ska_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_state: Literal[True], **options: Unpack[SKAOptions]
) -> tuple[Tensor, SKAState]: ...


def ska_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mode: Mode = "exact",
    power: int = 1,
    ridge: float = 1e-3,
    scale: float | Tensor = 1.0,
    chunk_size: int | None = None,
    value_lag: bool = False,
    blend: Tensor | None = None,
    mask: Tensor | None = None,
    state: SKAState | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    context: SequenceContext | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, SKAState]:
    """Spectral Koopman Attention (arXiv 2605.06997 §3.2) in its un-whitened form.

    With G = ridge I + sum z_s z_s^T, M = sum z_s z_{s-1}^T and C = sum v_s z_s^T over the positions s that token t may
    see,

        y_t = C G^-1 (scale M G^-1)^power q_t.

    The paper writes the filter as L (A_w / max(1, sigma_max(A_w)))^K L^-1 with A_w = L^-1 M L^-T and G = L L^T. Since
    L A_w L^-1 = M G^-1 and sigma_max(A_w) < 1 for any keys, the two are one function. All sums and solves are in fp32
    (float64 for float64 inputs). Normalisation, write gate and output scale belong to the caller.

    Args:
        q: queries `[B, T, H, R]`.
        k: keys `[B, T, H, R]`.
        v: values `[B, T, H, P]`.
        mode: which positions token t sees, in its document. "exact": s <= t. "chunk": those of the chunks before its
            own (the paper's training form). "prefix": all.
        power: K. As M G^-1 maps a key to the next one, K = 0 reads the value at the matching key, K = 1 the one after
            it.
        ridge: the same number in training, prefill and decoding.
        scale: s, a float or `[H]`, applied in each of the K steps.
        chunk_size: tokens worked together. "exact" gives the same result for any (default: by rank); "chunk": the grid,
            counted from the row's first token and cut at document borders (default 64).
        value_lag: C = sum v_s z_{s-1}^T: with K = 0, read the value that followed the key.
        blend: `[B, T, H, power + 1]`: y_t is the sum over j of blend_tj times the read of the power j, instead of the read of
            `power` alone. All are made on the way to the highest; the kernels of `fused/` take a call a power.
        mask: bool `[B, T]`; a False position writes nothing. Its neighbour's pair with it is zero, and the last True
            key of a row, not padding behind it, is the one that the returned state holds.
        state: what the rows continue from. A row start is a border if and only if this is None. In "chunk" mode the
            state is taken to lie on the chunk grid.
        return_state: also return the state after each row.
        cu_seqlens: int32 or int64 `[documents + 1]`, borders in the flattened `B * T` tokens; see
            `kernels/documents.py`.
        context: rows are segments of longer ones that a group of ranks shares; it holds their borders. Not in "prefix"
            mode, nor with `mask`, `state` or `cu_seqlens`; in "chunk" mode segments are whole chunks. See
            `kernels/sequence.py`.
        backend: "naive" is the token loop, "torch" the chunked form, "triton" the kernels of `fused/`, which take half
            precision as it is; "auto" takes the fastest that runs here.

    Returns:
        y `[B, T, H, P]` in the dtype of `v`; with `return_state` also the state, in the dtype of the sums.

    Raises:
        ValueError: a shape, a name or a number is wrong.
    """
    batch, length, heads, rank = _check_shapes(q, k, v, mask)
    if blend is not None and blend.shape != (batch, length, heads, power + 1):
        raise ValueError(
            f"blend must be [B, T, H, power + 1] = {[batch, length, heads, power + 1]}, not {list(blend.shape)}"
        )
    if mode not in ("exact", "chunk", "prefix"):
        raise ValueError(f'mode must be "exact", "chunk" or "prefix", not {mode!r}')
    if power < 0 or ridge <= 0:
        raise ValueError(f"power must be at least 0 and ridge above 0, not {power} and {ridge}")
    if context is not None and (cu_seqlens is not None or mask is not None or state is not None):
        raise ValueError("context must come without cu_seqlens, mask and state: it holds the borders of whole rows")
    if context is not None and context.world > 1 and mode == "prefix":
        raise ValueError('mode "prefix" needs whole rows: context must be None')
    if backend != "auto" and backend not in IMPLEMENTATIONS:
        raise ValueError(f"backend must be one of auto, {', '.join(IMPLEMENTATIONS)}, not {backend!r}")
    if chunk_size is None:
        chunk_size = 64 if mode == "chunk" or rank > 32 else 32
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    if backend in ("auto", "triton"):
        obstacle = why_not_fused(q, k, v, mode=mode, power=power, chunk_size=chunk_size)
        if backend == "triton" and obstacle:
            raise ValueError(f'backend "triton" needs {obstacle}; backend "torch" takes any')
        backend = "torch" if obstacle else "triton"
    if context is not None and context.world > 1 and mode == "chunk" and length % chunk_size:
        raise ValueError(
            f"segments must be whole chunks of {chunk_size} tokens, not {length} tokens: in chunk mode the grid runs "
            f"across ranks"
        )

    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out_dtype = v.dtype
    if backend != "triton":
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if mask is not None:
        written = mask[:, :, None, None].to(k.dtype)
        k, v = k * written, v * written
    if not isinstance(scale, Tensor):
        scale = torch.full((heads,), float(scale), dtype=dtype, device=q.device)
    if scale.shape != (heads,):
        raise ValueError(f"scale must be a float or have shape [{heads}] (heads), not {tuple(scale.shape)}")
    if context is not None:
        cu_seqlens = context.local_cu_seqlens(batch, length, q.device)
    starts = inner_borders(cu_seqlens, batch, length, q.device)
    if context is not None and context.world > 1:
        with torch.autocast(q.device.type, enabled=False):
            entering = enter_segment(k, v, value_lag=value_lag, context=context)
    elif state is None and backend == "triton":
        entering = None
    elif state is None:
        entering = SKAState.zeros(batch, heads, rank, v.shape[-1], dtype=dtype, device=q.device)
    else:
        entering = _check_state(state, batch, heads, rank, v.shape[-1], dtype)

    options = dict(mode=mode, power=power, ridge=ridge, scale=scale.to(dtype), chunk_size=chunk_size)
    options |= dict(value_lag=value_lag, starts=starts, state=entering)
    options["blend"] = None if blend is None else blend.to(dtype)
    if backend == "triton":
        options["return_state"] = return_state
    # Under autocast the products would be in half precision, whose rounding is larger than the ridge.
    with without_autocast(q):
        y, final = IMPLEMENTATIONS[backend](q, k, v, **options)
    y = y.to(out_dtype)
    if not return_state:
        return y
    assert final is not None
    previous = k.new_zeros(batch, heads, rank, dtype=dtype) if entering is None else entering.last_key
    return y, final._replace(last_key=_last_real_key(k.to(dtype), previous, mask, starts))


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[int, int, int, int]:
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3] or 0 in q.shape + v.shape:
        raise ValueError(
            f"q and k must be [B, T, H, R] and v [B, T, H, P], none of them empty, not {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    if mask is not None and (mask.shape != q.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool [B, T] = {list(q.shape[:2])}, not {mask.dtype} {list(mask.shape)}")
    batch, length, heads, rank = q.shape
    return batch, length, heads, rank


def _check_state(state: SKAState, batch: int, heads: int, rank: int, width: int, dtype: torch.dtype) -> SKAState:
    want = [(batch, heads, rank, rank), (batch, heads, rank, rank), (batch, heads, width, rank), (batch, heads, rank)]
    for name, part, shape in zip(SKAState._fields, state, want, strict=True):
        if part.shape != shape:
            raise ValueError(f"state.{name} must have shape {list(shape)}, not {list(part.shape)}")
    return SKAState(*(part.to(dtype) for part in state))


def _last_real_key(k: Tensor, entering: Tensor, mask: Tensor | None, starts: Tensor | None) -> Tensor:
    """The key of each row's last position that `mask` keeps, in its last document. `[B, H, R]`."""
    if mask is None:
        return k[:, -1]
    position = torch.arange(k.shape[1], device=k.device)
    last = torch.where(mask, position, -1).amax(1)
    first = position.new_zeros(len(k)) if starts is None else torch.where(starts, position, 0).amax(1)
    key = k.gather(1, last.clamp(min=0)[:, None, None, None].expand(-1, 1, *k.shape[2:])).squeeze(1)
    empty = torch.where((first > 0)[:, None, None], torch.zeros_like(entering), entering)
    return torch.where((last >= first)[:, None, None], key, empty)
