"""The operations of the Gated DeltaNet and MesaNet layers: on a GPU the kernels of flash-linear-attention (package fla-core, extra
`rivals`), elsewhere, in float64 and for single tokens the reference loops.

On Hopper the library refuses the backward pass of Gated DeltaNet under Triton 3.4.0 to 3.7.0, which compile it wrongly (its issue
640).
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..available import on_gpu
from ..documents import inner_borders
from ..operator import uncompiled, without_autocast
from .naive import gated_delta_rule, mesa

EPSILON = 1e-6  # under the root of the length to which queries and keys are scaled, as in the library
# The library's kernels get heads of multiples of this width. On an H200 bf16 heads of 24 ended in an illegal memory access
# (fla-core 0.6, Triton 3.7.1).
BLOCK = 64
MISSING = "Gated DeltaNet and MesaNet need flash-linear-attention on a GPU: pip install 'echo-lm[rivals]'"


def has_library() -> bool:
    """Whether flash-linear-attention is installed."""
    return importlib.util.find_spec("fla") is not None


@uncompiled  # the loop would be unrolled, and the library's kernels are compiled already
def gated_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """The gated delta rule over rows (`gated_delta_rule` has the formula).

    Args:
        q: `[B, T, H, K]`, of any length: scaled to unit length here, as k.
        k: `[B, T, H, K]`, as those of `gated_delta_rule`, like the next three.
        v: `[B, T, H, V]`.
        g: `[B, T, H]`, logarithms of decays.
        beta: `[B, T, H]`, step sizes.
        state: `[B, H, K, V]`, what the rows continue from, in fp32.
        cu_seqlens: int32 or int64 `[documents + 1]`, see `kernels/documents.py`; not beside a state.

    Returns:
        o `[B, T, H, V]` in the dtype of v, and the state after each row, in fp32 (float64 for float64 inputs); with `cu_seqlens`
        None instead, as the library has one for each document.

    Raises:
        ModuleNotFoundError: the tensors are on a GPU and flash-linear-attention is not installed.
    """
    if v.device.type == "meta":
        return _shape_alone(q, k, v), g.new_empty(*_rows(q), q.shape[3], v.shape[3])
    if _by_loop(v):
        (q, k, v_wide, g, beta), starts = _prepare(q, k, v, g, beta), _starts(v, cu_seqlens)
        with without_autocast(v):
            o, state = gated_delta_rule(q, k, v_wide, g, beta, state=state, starts=starts)
        return o.to(v.dtype), state if cu_seqlens is None else None
    options, pack = _packing(v, cu_seqlens)
    operation = _library("gated_delta_rule", "chunk_gated_delta_rule")
    keys, width = k.shape[3], v.shape[3]
    inputs = (pack(x) for x in (_padded(q.to(v.dtype)), _padded(k.to(v.dtype)), _padded(v), g, beta))
    options |= {"initial_state": None if state is None else _padded(state, 2), "output_final_state": cu_seqlens is None}
    o, state = operation(*inputs, scale=keys**-0.5, use_qk_l2norm_in_kernel=True, **options)
    return o[..., :width].reshape(v.shape), None if state is None else state[..., :keys, :width]


@uncompiled
def mesa_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    *,
    state: tuple[Tensor, Tensor] | None = None,
    cu_seqlens: Tensor | None = None,
    steps: int = 30,
) -> tuple[Tensor, Any]:
    """The mesa layer over rows (`mesa` has the formula); arguments, results and errors as those of `gated_delta_scan`, and:

    Args:
        lamb: `[H, K]`, positive.
        state: `[B, H, K, K]` and `[B, H, K, V]`, in fp32.
        steps: of conjugate gradients in the library's kernels, which need V = K; the loop solves exactly.
    """
    if v.device.type == "meta":
        shape = *_rows(q), q.shape[3]
        return _shape_alone(q, k, v), (g.new_empty(*shape, q.shape[3]), g.new_empty(*shape, v.shape[3]))
    if _by_loop(v):
        (q, k, v_wide, g, beta), starts = _prepare(q, k, v, g, beta), _starts(v, cu_seqlens)
        with without_autocast(v):
            o, state = mesa(q, k, v_wide, g, beta, lamb.to(v_wide.dtype), state=state, starts=starts)
        return o.to(v.dtype), state if cu_seqlens is None else None
    options, pack = _packing(v, cu_seqlens)
    operation = _library("mesa_net", "chunk_mesa_net")
    width = v.shape[3]
    inputs = [pack(x) for x in (_padded(q.to(v.dtype)), _padded(k.to(v.dtype)), _padded(v), g, beta)]
    gram, values = (None, None) if state is None else (_padded(part, 2) for part in state)
    options |= {"h_kk_init": gram, "h_kv_init": values, "output_final_state": cu_seqlens is None}
    lamb = _padded(lamb, fill=1.0)
    o, gram, values = operation(*inputs, lamb, max_CG_iteration=steps, use_qk_l2norm_in_kernel=True, **options)
    if cu_seqlens is not None:
        return o[..., :width].reshape(v.shape), None
    return o[..., :width].reshape(v.shape), (gram[..., :width, :width], values[..., :width, :width])


def _by_loop(v: Tensor) -> bool:
    return not on_gpu(v) or v.dtype == torch.float64 or v.shape[1] == 1


def _padded(x: Tensor, dimensions: int = 1, fill: float = 0.0) -> Tensor:
    """Fill up the last dimensions to multiples of `BLOCK`. Zeros in keys, queries and values change no other number."""
    widths = [number for size in reversed(x.shape[-dimensions:]) for number in (0, -size % BLOCK)]
    return F.pad(x, widths, value=fill) if any(widths) else x


def _shape_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A stand-in for the output on "meta", through which gradients reach the kernels before the operation."""
    return v + (q * k).sum(-1, keepdim=True).to(v.dtype)


def _rows(q: Tensor) -> tuple[int, int]:
    return q.shape[0], q.shape[2]


def _prepare(q: Tensor, k: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All in fp32 or float64, queries and keys of unit length."""
    dtype = torch.float64 if others[0].dtype == torch.float64 else torch.float32
    q, k = (x * (x.square().sum(-1, keepdim=True) + EPSILON).rsqrt() for x in (q.to(dtype), k.to(dtype)))
    return q, k, *(x.to(dtype) for x in others)


def _starts(v: Tensor, cu_seqlens: Tensor | None) -> Tensor | None:
    return inner_borders(cu_seqlens, v.shape[0], v.shape[1], v.device)


def _packing(v: Tensor, cu_seqlens: Tensor | None) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """The library's option for document borders, and how it takes tensors `[B, T, ...]`: with borders as one row.

    The number of documents is a shape, for which the host waits for the GPU.
    """
    starts = _starts(v, cu_seqlens)
    if starts is None:
        return {}, lambda x: x
    starts[:, 0] = True
    first = starts.flatten().nonzero().flatten()
    offsets = torch.cat((first, first.new_tensor([starts.numel()])))
    return {"cu_seqlens": offsets}, lambda x: x.flatten(0, 1)[None]


@cache
def _library(package: str, operation: str) -> Callable:
    if not has_library():
        raise ModuleNotFoundError(MISSING, name="fla")
    return getattr(import_module(f"fla.ops.{package}"), operation)
