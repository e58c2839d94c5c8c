"""The public operation `ssd_scan`: checks of its arguments, and the choice of an implementation."""

import importlib.util
import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from ..available import MAMBA_SSM, on_gpu
from ..documents import document_ids, inner_borders
from ..operator import uncompiled
from .chunked import ssd_chunked
from .fused import ssd_fused, why_not_fused
from .naive import ssd_naive
from .tuning import choose

Backend = Literal["auto", "naive", "torch", "mamba-ssm", "triton"]


class SSDOptions(TypedDict, total=False):
    """The options of `ssd_scan`, described there; typed once for its overloads."""

    d: Tensor | None
    chunk_size: int | None
    state: Tensor | None
    cu_seqlens: Tensor | None
    backend: Backend


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    return_state: Literal[False] = False,
    **options: Unpack[SSDOptions],
) -> Tensor: ...


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    return_state: Literal[True],
    **options: Unpack[SSDOptions],
) -> tuple[Tensor, Tensor]: ...


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    d: Tensor | None = None,
    chunk_size: int | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The Mamba-2 scan (arXiv 2405.21060): h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T, y_t = h_t c_t + d x_t.

    Args:
        x: `[B, T, H, P]`.
        dt: `[B, T, H]`, step sizes after softplus; 0 makes a token leave no trace (padding).
        a: `[H]`, negative.
        b: `[B, T, G, N]`, each group serving H / G heads in a row.
        c: the same.
        d: `[H]`.
        chunk_size: tokens worked together; the result does not depend on it (default: by backend and state size).
        state: `[B, H, P, N]`, what the rows continue from. A row start is a border if and only if this is None. For
            rows that a group of ranks shares `enter_segment` gives it.
        return_state: also return the state after each row.
        cu_seqlens: int32 or int64 `[documents + 1]`, borders in the flattened `B * T` tokens.
        backend: "naive" is the token loop, "torch" the chunked form, "mamba-ssm" its Triton kernels (CUDA only),
            "triton" our own (CUDA only); "auto" takes the fastest that runs here. Sums are in fp32 (float64 for float64
            inputs, not "mamba-ssm" and "triton").

    Returns:
        y `[B, T, H, P]` in the dtype of `x`; with `return_state` also the state, in the dtype of the sums.

    Raises:
        ValueError: a shape or a name is wrong, or the backend does not run here.
    """
    batch, length, heads, width = _check_shapes(x, dt, a, b, c, state)
    if backend == "auto":
        backend = _fastest(x, b, chunk_size)
    if backend not in ("naive", "torch", "mamba-ssm", "triton"):
        raise ValueError(f"backend must be one of auto, naive, torch, mamba-ssm, triton, not {backend!r}")
    if backend == "triton" and (needs := why_not_fused(x, b, chunk_size)):
        raise ValueError(f'backend "triton" needs {needs}')
    if chunk_size is None and backend != "triton":
        # Measured: short chunks on the CPU as long as the state is small.
        chunk_size = chunk_size_of(length) if backend == "mamba-ssm" else 32 if b.shape[-1] <= 32 else 64
    starts = inner_borders(cu_seqlens, batch, length, x.device)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    out_dtype = x.dtype
    if backend == "triton":
        y, final = ssd_fused(x, dt, a, b, c, d, chunk_size=chunk_size, starts=starts, state=state)
    elif backend == "mamba-ssm":
        y, final = _mamba_ssm(x, dt, a, b, c, d, chunk_size, starts, state)
    else:
        assert chunk_size is not None
        scan = ssd_naive if backend == "naive" else ssd_chunked
        x, dt, a, b, c = (t.to(dtype) for t in (x, dt, a, b, c))
        if state is None:
            state = x.new_zeros(batch, heads, width, b.shape[-1])
        with torch.autocast(x.device.type, enabled=False):  # sums stay in fp32
            y, final = scan(x, dt, a, b, c, chunk_size=chunk_size, starts=starts, state=state.to(dtype))
        if d is not None:
            y = torch.addcmul(y, x, d.to(dtype)[:, None])
    y = y.to(out_dtype)
    return (y, final) if return_state else y


def _fastest(x: Tensor, b: Tensor, chunk_size: int | None) -> Backend:
    """The implementation that "auto" selects: our kernels in half precision, where they were measured to be faster."""
    if not on_gpu(x) or x.dtype == torch.float64:
        return "torch"
    if x.dtype in (torch.bfloat16, torch.float16) and why_not_fused(x, b, chunk_size) is None:
        return "triton"
    return "mamba-ssm" if MAMBA_SSM else "torch"


def chunk_size_of(length: int) -> int:
    """The chunk size for mamba-ssm's kernels: their default of 256, or less, so that short rows are not padded to it."""
    return min(256, max(16, 1 << (length - 1).bit_length()))


@cache
def mamba_ssm_kernel() -> Callable | None:
    """`mamba_chunk_scan_combined`, or None where mamba-ssm or Triton is not installed."""
    if not MAMBA_SSM:
        return None
    package = importlib.util.find_spec("mamba_ssm")
    assert package is not None
    # Without its CUDA build mamba-ssm fails to import this module, which only Mamba-1 needs.
    name = "selective_scan_cuda"
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = types.ModuleType(name)
    # Its __init__ imports language models and with them transformers: seconds, and an error where that is broken. The
    # kernels need none of it, so the package is entered without running it.
    bare = "mamba_ssm" not in sys.modules
    if bare:
        sys.modules["mamba_ssm"] = importlib.util.module_from_spec(package)
    try:
        from mamba_ssm.ops.triton import ssd_bmm, ssd_chunk_scan, ssd_chunk_state, ssd_combined, ssd_state_passing
    finally:
        if bare:
            del sys.modules["mamba_ssm"]
    choose([ssd_bmm, ssd_chunk_scan, ssd_chunk_state, ssd_combined, ssd_state_passing])
    return ssd_combined.mamba_chunk_scan_combined


@uncompiled  # it launches kernels already; torch.compile refuses its autograd function or breaks the graph
def _mamba_ssm(x, dt, a, b, c, d, chunk_size, starts, state) -> tuple[Tensor, Tensor]:
    kernel = mamba_ssm_kernel()
    if kernel is None or not on_gpu(x):
        raise ValueError('backend "mamba-ssm" needs CUDA tensors and the packages mamba-ssm and triton: use "torch"')
    return kernel(
        x,
        dt,
        a,
        b,
        c,
        chunk_size=max(chunk_size, 16),
        D=d,
        initial_states=state,
        seq_idx=None if starts is None else document_ids(starts).to(torch.int32),
        return_final_states=True,
    )


def _check_shapes(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None) -> tuple[int, ...]:
    if x.dim() != 4 or dt.shape != x.shape[:3] or a.shape != x.shape[2:3] or 0 in x.shape:
        raise ValueError(
            f"x must be [B, T, H, P], dt [B, T, H] and a [H], not {list(x.shape)}, {list(dt.shape)} and {list(a.shape)}"
        )
    if b.dim() != 4 or b.shape != c.shape or b.shape[:2] != x.shape[:2] or x.shape[2] % b.shape[2]:
        raise ValueError(f"b and c must be [B, T, G, N] with G a divisor of H, not {list(b.shape)} and {list(c.shape)}")
    want = (x.shape[0], *x.shape[2:], b.shape[-1])
    if state is not None and state.shape != want:
        raise ValueError(f"state must be [B, H, P, N] = {list(want)}, not {list(state.shape)}")
    return tuple(x.shape)
