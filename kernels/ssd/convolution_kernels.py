"""The kernels of `fused_convolution.py`."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launcher
from ..operator import register
from .fused_convolution import COLUMNS, PIECE, ROWS


@triton.jit
def _piece(T, C, PIECE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, pieces):
    """Row of the batch and first token of each piece of this program, and its channels."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    per_row = tl.cdiv(T, PIECE)
    first = (i % per_row) * PIECE
    # A piece that is not there lies where nothing is loaded, its last three inputs neither: zero times garbage may be NaN.
    return i // per_row, tl.where(i < pieces, first, T + 4), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def _load(p_x, i_b, t, c, T, C, stride):
    """Tokens t of the pieces, `[ROWS, COLUMNS]` fp32; zero outside the row."""
    inside = ((t >= 0) & (t < T))[:, None] & (c < C)[None, :]
    return tl.load(p_x + (i_b * T + t)[:, None] * stride + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_ids(p_ids, i_b, t, T):
    return tl.load(p_ids + i_b * T + t, mask=(t >= 0) & (t < T), other=-1)


@triton.jit
def _load_taps(p_w, p_b, c, C, BIAS: tl.constexpr):
    """The bias and the weights of tokens t, t - 1, t - 2 and t - 3, each `[1, COLUMNS]` fp32."""
    inside = c < C
    w0 = tl.load(p_w + c * 4 + 3, mask=inside, other=0.0).to(tl.float32)[None, :]
    w1 = tl.load(p_w + c * 4 + 2, mask=inside, other=0.0).to(tl.float32)[None, :]
    w2 = tl.load(p_w + c * 4 + 1, mask=inside, other=0.0).to(tl.float32)[None, :]
    w3 = tl.load(p_w + c * 4, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = w0 * 0.0
    if BIAS:
        bias = tl.load(p_b + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    return bias, w0, w1, w2, w3


@triton.jit(do_not_specialize=["T", "pieces"])
def convolve_forward(
    p_x,  # [B, T, C], rows `stride` apart
    p_w,  # [C, 4]
    p_b,  # [C], or anything unless BIAS
    p_ids,  # [B, T] int32, DOCUMENTS only
    p_y,  # [B, T, C], out
    T,
    pieces,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    i_b, first, c = _piece(T, C, PIECE, ROWS, COLUMNS, pieces)
    bias, w0, w1, w2, w3 = _load_taps(p_w, p_b, c, C, BIAS)
    x1 = _load(p_x, i_b, first - 1, c, T, C, STRIDE)
    x2 = _load(p_x, i_b, first - 2, c, T, C, STRIDE)
    x3 = _load(p_x, i_b, first - 3, c, T, C, STRIDE)
    for i in range(PIECE):
        t = first + i
        x0 = _load(p_x, i_b, t, c, T, C, STRIDE)
        if DOCUMENTS:
            own = _load_ids(p_ids, i_b, t, T)
            s1 = tl.where(_load_ids(p_ids, i_b, t - 1, T) == own, 1.0, 0.0)[:, None]
            s2 = tl.where(_load_ids(p_ids, i_b, t - 2, T) == own, 1.0, 0.0)[:, None]
            s3 = tl.where(_load_ids(p_ids, i_b, t - 3, T) == own, 1.0, 0.0)[:, None]
            y = bias + w0 * x0 + w1 * (x1 * s1) + w2 * (x2 * s2) + w3 * (x3 * s3)
        else:
            y = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        if SILU:
            y = y * tl.sigmoid(y)
        inside = (t < T)[:, None] & (c < C)[None, :]
        tl.store(p_y + (i_b * T + t)[:, None] * C + c[None, :], y.to(p_y.dtype.element_ty), mask=inside)
        x3 = x2
        x2 = x1
        x1 = x0


@triton.jit(do_not_specialize=["T", "pieces"])
def convolve_backward(
    p_x,  # [B, T, C], rows `stride` apart
    p_w,  # [C, 4]
    p_b,  # [C], or anything unless BIAS
    p_ids,  # [B, T] int32, DOCUMENTS only
    p_dy,  # [B, T, C]
    p_dx,  # [B, T, C], out
    p_dtaps,  # [programs, 5, C] fp32, out: of weights, that of token t first, and of the bias
    T,
    pieces,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    i_b, first, c = _piece(T, C, PIECE, ROWS, COLUMNS, pieces)
    bias, w0, w1, w2, w3 = _load_taps(p_w, p_b, c, C, BIAS)
    x1 = _load(p_x, i_b, first - 1, c, T, C, STRIDE)
    x2 = _load(p_x, i_b, first - 2, c, T, C, STRIDE)
    x3 = _load(p_x, i_b, first - 3, c, T, C, STRIDE)
    # What the last tokens' gradients before activation give to the token three back, which is then complete.
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    d1, d2, d3 = zero, zero, zero
    dw0, dw1, dw2, dw3, dbias = zero, zero, zero, zero, zero
    for i in range(PIECE + 3):
        t = first + i
        x0 = _load(p_x, i_b, t, c, T, C, STRIDE)
        d0 = _load(p_dy, i_b, t, c, T, C, C)
        z1, z2, z3 = x1, x2, x3
        if DOCUMENTS:
            own = _load_ids(p_ids, i_b, t, T)
            z1 = x1 * tl.where(_load_ids(p_ids, i_b, t - 1, T) == own, 1.0, 0.0)[:, None]
            z2 = x2 * tl.where(_load_ids(p_ids, i_b, t - 2, T) == own, 1.0, 0.0)[:, None]
            z3 = x3 * tl.where(_load_ids(p_ids, i_b, t - 3, T) == own, 1.0, 0.0)[:, None]
        if SILU:
            y = bias + w0 * x0 + w1 * z1 + w2 * z2 + w3 * z3
            share = tl.sigmoid(y)
            d0 *= share * (1.0 + y * (1.0 - share))
        mine = tl.where(i < PIECE, d0, 0.0)  # the others' weights are their own program's
        dw0 += mine * x0
        dw1 += mine * z1
        dw2 += mine * z2
        dw3 += mine * z3
        dbias += mine
        s = t - 3
        if DOCUMENTS:
            own = _load_ids(p_ids, i_b, s, T)
            s1 = tl.where(_load_ids(p_ids, i_b, t - 2, T) == own, 1.0, 0.0)[:, None]
            s2 = tl.where(_load_ids(p_ids, i_b, t - 1, T) == own, 1.0, 0.0)[:, None]
            s3 = tl.where(_load_ids(p_ids, i_b, t, T) == own, 1.0, 0.0)[:, None]
            dx = w0 * d3 + w1 * (d2 * s1) + w2 * (d1 * s2) + w3 * (d0 * s3)
        else:
            dx = w0 * d3 + w1 * d2 + w2 * d1 + w3 * d0
        inside = ((s >= first) & (s < T))[:, None] & (c < C)[None, :]
        tl.store(p_dx + (i_b * T + s)[:, None] * C + c[None, :], dx.to(p_dx.dtype.element_ty), mask=inside)
        x3 = x2
        x2 = x1
        x1 = x0
        d3 = d2
        d2 = d1
        d1 = d0
    p_dtaps += tl.program_id(0).to(tl.int64) * (5 * C) + c
    inside = c < C
    tl.store(p_dtaps, tl.sum(dw0, 0), mask=inside)
    tl.store(p_dtaps + C, tl.sum(dw1, 0), mask=inside)
    tl.store(p_dtaps + 2 * C, tl.sum(dw2, 0), mask=inside)
    tl.store(p_dtaps + 3 * C, tl.sum(dw3, 0), mask=inside)
    tl.store(p_dtaps + 4 * C, tl.sum(dbias, 0), mask=inside)


@functools.cache
def _launchers(device: int | None, dtypes: tuple, channels: int, stride: int, bias: bool, silu: bool, documents: bool):
    sizes = dict(C=channels, STRIDE=stride, PIECE=PIECE, ROWS=ROWS, COLUMNS=COLUMNS)
    options = dict(BIAS=bias, SILU=silu, DOCUMENTS=documents, num_warps=4)
    return [Launcher(kernel, **sizes, **options) for kernel in (convolve_forward, convolve_backward)]


def _launch(
    which: int, x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None, silu: bool, *others: Tensor
):
    batch, length, channels = x.shape
    pieces = batch * triton.cdiv(length, PIECE)
    kind = (x.dtype, weight.dtype), channels, x.stride(1), bias is not None, silu, ids is not None
    grid = triton.cdiv(pieces, ROWS), triton.cdiv(channels, COLUMNS)
    with torch.cuda.device_of(x):
        _launchers(x.device.index, *kind)[which](grid, x, weight, bias, ids, *others, length, pieces)


def _rows(x: Tensor) -> Tensor:
    """x with neighbouring channels and evenly spaced tokens: a slice of wider rows will do."""
    even = x.stride(2) == 1 and (len(x) == 1 or x.stride(0) == x.shape[1] * x.stride(1))
    return x if even else x.contiguous()


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None, silu: bool) -> Tensor:
    y = x.new_empty(x.shape)
    _launch(0, _rows(x), weight.contiguous(), bias, ids, silu, y)
    return y


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and, by program, of the weights and the bias, `[programs, 5, C]` fp32."""
    dx, dtaps = _gradients(dy, x, weight, bias, ids, silu)
    _launch(1, _rows(x), weight.contiguous(), bias, ids, silu, dy.contiguous(), dx, dtaps)
    return dx, dtaps


def _gradients(dy, x, weight, bias, ids, silu):
    programs = triton.cdiv(x.shape[0] * triton.cdiv(x.shape[1], PIECE), ROWS)
    return x.new_empty(x.shape), x.new_empty(programs, 5, x.shape[2], dtype=torch.float32)


def _save(ctx, inputs, output):
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy):
    x, weight, bias, ids = ctx.saved_tensors
    dx, dtaps = torch.ops.echo_lm.convolve_backward(dy, x, weight, bias, ids, ctx.silu)
    dtaps = dtaps.sum(0)
    dweight = dtaps[:4].flip(0).T.to(weight.dtype)
    return dx, dweight, None if bias is None else dtaps[4].to(bias.dtype), None, None


register("convolve_backward", _backward, _gradients)
convolve = register("convolve", _forward, lambda x, *_: x.new_empty(x.shape), _save, _differentiate)
