"""Unit queries, gated unit keys and gated values in one pass, and back (kernels/ska/weigh.py)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..weigh import SMALLEST_NORM as SMALLEST

SMALLEST_NORM = tl.constexpr(SMALLEST)
ROWS = 32


@triton.jit
def _load(p, n, N, D: tl.constexpr, BD: tl.constexpr):
    d = tl.arange(0, BD)
    return tl.load(p + n[:, None] * D + d[None, :], mask=(n < N)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store(p, x, n, N, D: tl.constexpr, BD: tl.constexpr):
    d = tl.arange(0, BD)
    tl.store(p + n[:, None] * D + d[None, :], x.to(p.dtype.element_ty), mask=(n < N)[:, None] & (d < D)[None, :])


@triton.jit
def _inverse_norm(x):
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), SMALLEST_NORM)


@triton.jit
def weigh_forward(
    p_q,
    p_k,
    p_v,
    p_gate,
    p_unit,
    p_z,
    p_w,
    N,
    R: tl.constexpr,
    P: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    gate = tl.load(p_gate + n, mask=n < N, other=0.0).to(tl.float32)
    q = _load(p_q, n, N, R, BR)
    _store(p_unit, q * _inverse_norm(q)[:, None], n, N, R, BR)
    k = _load(p_k, n, N, R, BR)
    _store(p_z, k * (_inverse_norm(k) * gate)[:, None], n, N, R, BR)
    _store(p_w, _load(p_v, n, N, P, BP) * gate[:, None], n, N, P, BP)


@triton.jit
def _through_norm(x, dy):
    """Gradient of x / |x|; below the smallest norm the norm is a constant."""
    inverse = _inverse_norm(x)
    along = tl.where(inverse < 1.0 / SMALLEST_NORM, tl.sum(x * dy, 1) * inverse * inverse, 0.0)
    return (dy - x * along[:, None]) * inverse[:, None]


@triton.jit
def weigh_backward(
    p_q,
    p_k,
    p_v,
    p_gate,
    p_dunit,
    p_dz,
    p_dw,
    p_dq,
    p_dk,
    p_dv,
    p_dgate,
    N,
    R: tl.constexpr,
    P: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    gate = tl.load(p_gate + n, mask=n < N, other=0.0).to(tl.float32)
    _store(p_dq, _through_norm(_load(p_q, n, N, R, BR), _load(p_dunit, n, N, R, BR)), n, N, R, BR)
    k = _load(p_k, n, N, R, BR)
    dz = _load(p_dz, n, N, R, BR)
    dgate = tl.sum(k * dz, 1) * _inverse_norm(k)
    _store(p_dk, _through_norm(k, dz * gate[:, None]), n, N, R, BR)
    v = _load(p_v, n, N, P, BP)
    dw = _load(p_dw, n, N, P, BP)
    dgate += tl.sum(v * dw, 1)
    _store(p_dv, dw * gate[:, None], n, N, P, BP)
    tl.store(p_dgate + n, dgate.to(p_dgate.dtype.element_ty), mask=n < N)


def _launch(kernel, q: Tensor, v: Tensor, *tensors: Tensor) -> None:
    rows = q.shape[:-1].numel()
    sizes = dict(R=q.shape[-1], P=v.shape[-1], BN=ROWS)
    blocks = dict(BR=triton.next_power_of_2(q.shape[-1]), BP=triton.next_power_of_2(v.shape[-1]))
    with torch.cuda.device_of(q):
        kernel[(triton.cdiv(rows, ROWS),)](*tensors, rows, **sizes, **blocks)


@torch.library.custom_op("echo_lm::weigh", mutates_args=())
def weigh_fused(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, gate = (x.contiguous() for x in (q, k, v, gate))
    outputs = tuple(torch.empty_like(x) for x in (q, k, v))
    _launch(weigh_forward, q, v, q, k, v, gate, *outputs)
    return outputs


@weigh_fused.register_fake
def _(q, k, v, gate):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


@torch.library.custom_op("echo_lm::weigh_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = tuple(x.contiguous() for x in (q, k, v, gate, dq, dk, dv))
    outputs = tuple(torch.empty_like(x) for x in tensors[:4])
    _launch(weigh_backward, q, v, *tensors, *outputs)
    return outputs


@_backward.register_fake
def _(q, k, v, gate, dq, dk, dv):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, gate))


weigh_fused.register_autograd(
    lambda ctx, *grads: _backward(*ctx.saved_tensors, *grads),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
