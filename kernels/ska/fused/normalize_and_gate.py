"""Kernels for `normalize_and_gate`, forward and backward: unit queries, gated unit keys and gated values in one pass
(kernels/ska/normalize_and_gate.py)."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import Launcher, cdiv, device_function, next_power_of_2
from ...operator import register
from ..constants import HIGH as GATE_HIGH
from ..constants import LOW as GATE_LOW
from ..constants import SMALLEST_NORM as SMALLEST

SMALLEST_NORM = tl.constexpr(SMALLEST)
LOW, HIGH = tl.constexpr(GATE_LOW), tl.constexpr(GATE_HIGH)
ROWS = 32
KINDS = {"none": 0, "sqrt-sigmoid": 1, "hard": 2}


@device_function
def _gate(p_packed, p_bias, i_t, i_h, inside, stride, first: tl.constexpr, KIND: tl.constexpr):
    """The gate of each row and its derivative with respect to the logit."""
    if KIND == 0:
        gate = tl.full([i_t.shape[0]], 1.0, tl.float32)
        slope = tl.zeros([i_t.shape[0]], tl.float32)
    else:
        logits = tl.load(p_packed + i_t * stride + first + i_h, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(logits + tl.load(p_bias + i_h).to(tl.float32))
        if KIND == 1:
            gate = tl.sqrt(share)
            slope = 0.5 * gate * (1.0 - share)
        else:
            gate = LOW + (HIGH - LOW) * share
            slope = tl.where((gate >= 0.0) & (gate <= 1.0), (HIGH - LOW) * share * (1.0 - share), 0.0)
            gate = tl.minimum(tl.maximum(gate, 0.0), 1.0)
    return gate, slope


@device_function
def _load(p_rows, inside, D: tl.constexpr, BD: tl.constexpr):
    d = tl.arange(0, BD)
    return tl.load(p_rows[:, None] + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@device_function
def _store(p_rows, x, inside, D: tl.constexpr, BD: tl.constexpr):
    d = tl.arange(0, BD)
    x = x.to(p_rows.dtype.element_ty)
    tl.store(p_rows[:, None] + d[None, :], x, mask=inside[:, None] & (d < D)[None, :])


@device_function
def _inverse_norm(x):
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), SMALLEST_NORM)


@triton.jit(do_not_specialize=["N"])
def normalize_and_gate_forward(
    p_packed,  # [tokens, COLUMNS]
    p_bias,  # [H]
    p_unit,  # [tokens, H, R], out
    p_z,  # [tokens, H, R], out
    p_w,  # [tokens, H, P], out
    N,  # tokens * H
    H: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    COLUMNS: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    KIND: tl.constexpr,
):
    """Kernel of the forward pass: normalise queries and keys, and gate keys and values."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inside = n < N
    i_t, i_h = n // H, n % H
    gate, _ = _gate(p_packed, p_bias, i_t, i_h, inside, COLUMNS, H * (2 * R + P), KIND)
    p_q = p_packed + i_t * COLUMNS + i_h * R
    q = _load(p_q, inside, R, BR)
    _store(p_unit + n * R, q * _inverse_norm(q)[:, None], inside, R, BR)
    k = _load(p_q + H * R, inside, R, BR)
    _store(p_z + n * R, k * (_inverse_norm(k) * gate)[:, None], inside, R, BR)
    v = _load(p_packed + i_t * COLUMNS + 2 * H * R + i_h * P, inside, P, BP)
    _store(p_w + n * P, v * gate[:, None], inside, P, BP)


@device_function
def _through_norm(x, dy):
    """Gradient of x / |x|; below the smallest norm the norm is a constant."""
    inverse = _inverse_norm(x)
    along = tl.where(inverse < 1.0 / SMALLEST_NORM, tl.sum(x * dy, 1) * inverse * inverse, 0.0)
    return (dy - x * along[:, None]) * inverse[:, None]


@triton.jit(do_not_specialize=["N"])
def normalize_and_gate_backward(
    p_packed,  # [tokens, COLUMNS]
    p_bias,  # [H]
    p_dunit,  # [tokens, H, R]
    p_dz,  # [tokens, H, R]
    p_dw,  # [tokens, H, P]
    p_dpacked,  # [tokens, COLUMNS], out
    N,
    H: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    COLUMNS: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    KIND: tl.constexpr,
):
    """Kernel of the backward pass: gradients of all columns of `packed`, gate logits included."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inside = n < N
    i_t, i_h = n // H, n % H
    gate, slope = _gate(p_packed, p_bias, i_t, i_h, inside, COLUMNS, H * (2 * R + P), KIND)
    q_at = i_t * COLUMNS + i_h * R
    k_at = q_at + H * R
    v_at = i_t * COLUMNS + 2 * H * R + i_h * P
    dq = _through_norm(_load(p_packed + q_at, inside, R, BR), _load(p_dunit + n * R, inside, R, BR))
    _store(p_dpacked + q_at, dq, inside, R, BR)
    k = _load(p_packed + k_at, inside, R, BR)
    dz = _load(p_dz + n * R, inside, R, BR)
    dgate = tl.sum(k * dz, 1) * _inverse_norm(k)
    _store(p_dpacked + k_at, _through_norm(k, dz * gate[:, None]), inside, R, BR)
    v = _load(p_packed + v_at, inside, P, BP)
    dw = _load(p_dw + n * P, inside, P, BP)
    dgate += tl.sum(v * dw, 1)
    _store(p_dpacked + v_at, dw * gate[:, None], inside, P, BP)
    p_rest = p_dpacked + i_t * COLUMNS + H * (2 * R + P)
    if KIND != 0:
        tl.store(p_rest + i_h, (dgate * slope).to(p_dpacked.dtype.element_ty), mask=inside)
        p_rest += H
    PADDING: tl.constexpr = COLUMNS - H * (2 * R + P) - (H if KIND != 0 else 0)
    for i in tl.static_range(PADDING):
        tl.store(p_rest + i, tl.zeros([BN], tl.float32).to(p_dpacked.dtype.element_ty), mask=inside & (i_h == 0))


@functools.cache
def _launchers(
    device: int | None, dtypes: tuple[torch.dtype, ...], heads: int, rank: int, width: int, columns: int, kind: str
):
    sizes = dict(H=heads, R=rank, P=width, COLUMNS=columns, KIND=KINDS[kind])
    blocks = dict(BR=next_power_of_2(rank), BP=next_power_of_2(width), BN=ROWS)
    return [
        Launcher(kernel, num_warps=4, **sizes, **blocks)
        for kernel in (normalize_and_gate_forward, normalize_and_gate_backward)
    ]


def _launch(which: int, sizes: tuple, packed: Tensor, bias: Tensor | None, *tensors: Tensor) -> None:
    dtypes = packed.dtype, None if bias is None else bias.dtype
    rows = packed.shape[:-1].numel() * sizes[0]
    with torch.cuda.device_of(packed):
        launch = _launchers(packed.device.index, dtypes, *sizes[:3], packed.shape[-1], sizes[3])[which]
        launch((cdiv(rows, ROWS),), packed, bias, *tensors, rows)


def _outputs(packed: Tensor, bias: Tensor | None, heads: int, rank: int, width: int, kind: str) -> tuple[Tensor, ...]:
    return tuple(packed.new_empty(*packed.shape[:-1], heads, d) for d in (rank, rank, width))


def _forward(
    packed: Tensor, bias: Tensor | None, heads: int, rank: int, width: int, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(packed, bias, heads, rank, width, kind)
    _launch(0, (heads, rank, width, kind), packed.contiguous(), bias, *outputs)
    q, k, v = outputs
    return q, k, v


def _backward(
    packed: Tensor,
    bias: Tensor | None,
    heads: int,
    rank: int,
    width: int,
    kind: str,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> Tensor:
    packed = packed.contiguous()
    dpacked = torch.empty_like(packed)
    _launch(1, (heads, rank, width, kind), packed, bias, *(x.contiguous() for x in (dq, dk, dv)), dpacked)
    return dpacked


def _save(ctx, inputs, output):
    packed, bias, *ctx.options = inputs
    ctx.save_for_backward(packed, bias)


def _differentiate(ctx, *gradients):
    packed, bias = ctx.saved_tensors
    dpacked = torch.ops.echo_lm.normalize_and_gate_backward(packed, bias, *ctx.options, *gradients)
    dbias = None
    if bias is not None:
        heads, rank, width, _ = ctx.options
        first = heads * (2 * rank + width)
        dbias = dpacked[..., first : first + heads].flatten(0, -2).sum(0, dtype=torch.float32).to(bias.dtype)
    return dpacked, dbias, None, None, None, None


register("normalize_and_gate_backward", _backward, lambda packed, *_: torch.empty_like(packed))
normalize_and_gate_fused = register("normalize_and_gate", _forward, _outputs, _save, _differentiate)
