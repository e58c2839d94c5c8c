"""Triton kernels of the short causal convolution, launched by `fused_convolution.py`."""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launcher, cdiv, device_function
from ..operator import register
from .fused_convolution import COLUMNS, PIECE, TAPS


@device_function
def _piece(T, PIECE: tl.constexpr, COLUMNS: tl.constexpr):
    """Row of the batch and first token of this program's piece, and its channels."""
    i = tl.program_id(0).to(tl.int64)
    per_row = tl.cdiv(T, PIECE)
    return i // per_row, (i % per_row) * PIECE, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)


@device_function
def _load(p_x, i_b, t, c, T, C, stride):
    """Token t, `[COLUMNS]` fp32; zero outside the row."""
    inside = (t >= 0) & (t < T) & (c < C)
    return tl.load(p_x + (i_b * T + t) * stride + c, mask=inside, other=0.0).to(tl.float32)


@device_function
def _load_parts(p_x, p_b, p_c, i_b, t, c, T, C: tl.constexpr, X: tl.constexpr, N: tl.constexpr, GIVEN: tl.constexpr):
    """`_load` of channels that lie in three tensors, X, N and C - X - N wide; zero also for the first GIVEN tokens."""
    t = tl.where(t < GIVEN, -1, t)
    x = _load(p_x, i_b, t, c, T, X, X)
    if X < C:
        x += _load(p_b, i_b, t, tl.where(c >= X, c - X, C), T, N, N)
        x += _load(p_c, i_b, t, tl.where(c >= X + N, c - X - N, C), T, C - X - N, C - X - N)
    return x


@device_function
def _store(p_y, y, t, c, inside, C):
    """y as row t of `[tokens, C]`, the channels that it has."""
    tl.store(p_y + t * C + c, y.to(p_y.dtype.element_ty), mask=inside & (c >= 0) & (c < C))


@device_function
def _load_ids(p_ids, i_b, t, T):
    return tl.load(p_ids + i_b * T + t, mask=(t >= 0) & (t < T), other=-1)


@device_function
def _load_taps(p_w, p_b, c, C, BIAS: tl.constexpr):
    """The bias and the weights of tokens t, t - 1, t - 2 and t - 3, each `[COLUMNS]` fp32."""
    inside = c < C
    w0 = tl.load(p_w + c * 4 + 3, mask=inside, other=0.0).to(tl.float32)
    w1 = tl.load(p_w + c * 4 + 2, mask=inside, other=0.0).to(tl.float32)
    w2 = tl.load(p_w + c * 4 + 1, mask=inside, other=0.0).to(tl.float32)
    w3 = tl.load(p_w + c * 4, mask=inside, other=0.0).to(tl.float32)
    bias = w0 * 0.0
    if BIAS:
        bias = tl.load(p_b + c, mask=inside, other=0.0).to(tl.float32)
    return bias, w0, w1, w2, w3


@triton.jit(do_not_specialize=["T"])
def convolve_forward(
    p_x,  # [B, T, C], rows `stride` apart
    p_w,  # [C, 4]
    p_b,  # [C], or anything unless BIAS
    p_ids,  # [B, T] int32, DOCUMENTS only
    p_y,  # [B, T, X], out
    p_yb,  # [B, T, N], out
    p_yc,  # [B, T, C - X - N], out
    T,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    X: tl.constexpr,
    N: tl.constexpr,
    PIECE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """Kernel of the convolution and its activation; one program walks a piece of a row, token by token, for some channels."""
    i_b, first, c = _piece(T, PIECE, COLUMNS)
    bias, w0, w1, w2, w3 = _load_taps(p_w, p_b, c, C, BIAS)
    x1 = _load(p_x, i_b, first - 1, c, T, C, STRIDE)
    x2 = _load(p_x, i_b, first - 2, c, T, C, STRIDE)
    x3 = _load(p_x, i_b, first - 3, c, T, C, STRIDE)
    for i in range(PIECE):
        t = first + i
        x0 = _load(p_x, i_b, t, c, T, C, STRIDE)
        if DOCUMENTS:
            own = _load_ids(p_ids, i_b, t, T)
            s1 = tl.where(_load_ids(p_ids, i_b, t - 1, T) == own, 1.0, 0.0)
            s2 = tl.where(_load_ids(p_ids, i_b, t - 2, T) == own, 1.0, 0.0)
            s3 = tl.where(_load_ids(p_ids, i_b, t - 3, T) == own, 1.0, 0.0)
            y = bias + w0 * x0 + w1 * (x1 * s1) + w2 * (x2 * s2) + w3 * (x3 * s3)
        else:
            y = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        if SILU:
            y = y * tl.sigmoid(y)
        _store(p_y, y, i_b * T + t, c, t < T, X)
        if X < C:
            _store(p_yb, y, i_b * T + t, c - X, t < T, N)
            _store(p_yc, y, i_b * T + t, c - X - N, t < T, C - X - N)
        x3 = x2
        x2 = x1
        x1 = x0


@triton.jit(do_not_specialize=["T"])
def convolve_backward(
    p_x,  # [B, T, C], rows `stride` apart
    p_w,  # [C, 4]
    p_b,  # [C], or anything unless BIAS
    p_ids,  # [B, T] int32, DOCUMENTS only
    p_dy,  # [B, T, X]
    p_dyb,  # [B, T, N]
    p_dyc,  # [B, T, C - X - N]
    p_dx,  # [B, T, C], out
    p_dtaps,  # [pieces, 5, C] fp32, out: of weights, that of token t first, and of the bias
    T,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    X: tl.constexpr,
    N: tl.constexpr,
    PIECE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    GIVEN: tl.constexpr,  # the first tokens, whose outputs are given and not computed here
):
    """Kernel of the gradients of the convolution; one program walks a piece of a row, token by token, for some channels."""
    i_b, first, c = _piece(T, PIECE, COLUMNS)
    bias, w0, w1, w2, w3 = _load_taps(p_w, p_b, c, C, BIAS)
    x1 = _load(p_x, i_b, first - 1, c, T, C, STRIDE)
    x2 = _load(p_x, i_b, first - 2, c, T, C, STRIDE)
    x3 = _load(p_x, i_b, first - 3, c, T, C, STRIDE)
    # Partial gradients of the last three inputs; each further token completes the oldest. Triton 3.6 takes values that are zero
    # at first and then only handed on (g3 = g2, g2 = g1) for one and the same: these grow in between.
    zero = tl.zeros([COLUMNS], tl.float32)
    g1, g2, g3 = zero, zero, zero
    dw0, dw1, dw2, dw3, dbias = zero, zero, zero, zero, zero
    # Loaded one token ahead, since a program spends most of its time waiting for memory.
    x_ahead = _load(p_x, i_b, first, c, T, C, STRIDE)
    d_ahead = _load_parts(p_dy, p_dyb, p_dyc, i_b, first, c, T, C, X, N, GIVEN)
    for i in range(PIECE + 3):
        t = first + i
        x0, d = x_ahead, d_ahead
        x_ahead = _load(p_x, i_b, t + 1, c, T, C, STRIDE)
        d_ahead = _load_parts(p_dy, p_dyb, p_dyc, i_b, t + 1, c, T, C, X, N, GIVEN)
        z1, z2, z3 = x1, x2, x3
        if DOCUMENTS:
            own = _load_ids(p_ids, i_b, t, T)
            s1 = tl.where(_load_ids(p_ids, i_b, t - 1, T) == own, 1.0, 0.0)
            s2 = tl.where(_load_ids(p_ids, i_b, t - 2, T) == own, 1.0, 0.0)
            s3 = tl.where(_load_ids(p_ids, i_b, t - 3, T) == own, 1.0, 0.0)
            z1, z2, z3 = x1 * s1, x2 * s2, x3 * s3
        if SILU:
            y = bias + w0 * x0 + w1 * z1 + w2 * z2 + w3 * z3
            share = tl.sigmoid(y)
            d *= share * (1.0 + y * (1.0 - share))
        mine = tl.where(i < PIECE, d, 0.0)  # weights of other tokens are counted by their own program
        dw0 += mine * x0
        dw1 += mine * z1
        dw2 += mine * z2
        dw3 += mine * z3
        dbias += mine
        d1, d2, d3 = w1 * d, w2 * d, w3 * d
        if DOCUMENTS:
            d1, d2, d3 = d1 * s1, d2 * s2, d3 * s3
        _store(p_dx, g3 + d3, i_b * T + t - 3, c, (i >= 3) & (t - 3 < T), C)
        g3 = g2 + d2
        g2 = g1 + d1
        g1 = w0 * d
        x3 = x2
        x2 = x1
        x1 = x0
    p_dtaps += tl.program_id(0).to(tl.int64) * (5 * C) + c
    inside = c < C
    tl.store(p_dtaps, dw0, mask=inside)
    tl.store(p_dtaps + C, dw1, mask=inside)
    tl.store(p_dtaps + 2 * C, dw2, mask=inside)
    tl.store(p_dtaps + 3 * C, dw3, mask=inside)
    tl.store(p_dtaps + 4 * C, dbias, mask=inside)


@functools.cache
def _launchers(
    device: int | None,
    dtypes: tuple,
    channels: int,
    stride: int,
    parts: tuple,
    bias: bool,
    silu: bool,
    documents: bool,
    given: int,
):
    sizes = dict(C=channels, STRIDE=stride, X=parts[0], N=parts[1], PIECE=PIECE, COLUMNS=COLUMNS)
    options = dict(BIAS=bias, SILU=silu, DOCUMENTS=documents, num_warps=1)
    return Launcher(convolve_forward, **sizes, **options), Launcher(convolve_backward, GIVEN=given, **sizes, **options)


def _launch(which: int, inputs: tuple, others: Sequence[Tensor]) -> None:
    x, weight, bias, ids, first, silu, parts = inputs
    # Channels must be contiguous and tokens evenly spaced; a slice of wider rows is allowed.
    if x.stride(2) != 1 or (len(x) > 1 and x.stride(0) != x.shape[1] * x.stride(1)):
        x = x.contiguous()
    _, length, channels = x.shape
    options = bias is not None, silu, ids is not None, 0 if first is None else TAPS - 1
    kind = (x.dtype, weight.dtype), channels, x.stride(1), tuple(parts), *options
    grid = _pieces(x), cdiv(channels, COLUMNS)
    tensors = (None if t is None else t.contiguous() for t in (weight, bias, ids, *others))
    with torch.cuda.device_of(x):
        _launchers(x.device.index, *kind)[which](grid, x, *tensors, length)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor | None,
    first: Tensor | None,
    silu: bool,
    parts: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = x, weight, bias, ids, first, silu, parts
    outputs = _outputs(*inputs)
    _launch(0, inputs, outputs)
    if first is not None:
        for output, part in zip(outputs, first.split(parts, -1), strict=True):
            output[:, : TAPS - 1] = part
    return outputs


def _outputs(x, weight, bias, ids, first, silu, parts):
    return tuple(x.new_empty(*x.shape[:2], part) for part in parts)


def _backward(
    dy: Tensor,
    db: Tensor,
    dc: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor | None,
    first: Tensor | None,
    silu: bool,
    parts: list[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and, by piece, of the weights and the bias, `[pieces, 5, C]` fp32."""
    dx, dtaps = _gradients(dy, db, dc, x)
    _launch(1, (x, weight, bias, ids, first, silu, parts), (dy, db, dc, dx, dtaps))
    return dx, dtaps


def _gradients(dy, db, dc, x, *_):
    return x.new_empty(x.shape), x.new_empty(_pieces(x), 5, x.shape[2], dtype=torch.float32)


def _pieces(x):
    return x.shape[0] * cdiv(x.shape[1], PIECE)


def _save(ctx, inputs, output):
    *tensors, silu, parts = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = silu, parts


def _differentiate(ctx, *gradients):
    x, weight, bias, ids, first = ctx.saved_tensors
    dx, dtaps = torch.ops.echo_lm.convolve_backward(*gradients, x, weight, bias, ids, first, *ctx.options)
    dfirst = None if first is None else torch.cat([part[:, : TAPS - 1] for part in gradients], -1)
    dtaps = dtaps.sum(0)
    dweight = dtaps[:4].flip(0).T.to(weight.dtype)
    return dx, dweight, None if bias is None else dtaps[4].to(bias.dtype), None, dfirst, None, None


register("convolve_backward", _backward, _gradients, any_layout=True)
convolve = register("convolve", _forward, _outputs, _save, _differentiate, any_layout=True)
