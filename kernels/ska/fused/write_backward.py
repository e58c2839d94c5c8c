"""Backward kernel of the sums: gradients of keys and values from the gradient of the state that their chunk leaves."""

import triton
import triton.language as tl

from ...launch import device_function
from .tiles import (
    load_ids,
    load_matrix,
    load_previous_keys,
    load_rows,
    mul,
    place,
    split,
    store_rows,
    transpose,
)


@triton.jit(do_not_specialize=["T", "N", "H"])
def write_backward(
    p_k,  # [B, T, H, R]
    p_v,  # [B, T, H, P]
    p_last,  # [B, H, R] fp32
    p_ids,  # [B, T] int32
    p_dstates,  # [B, N, H, 2R + P, R] fp32: gradient of the state that each chunk leaves
    p_dk_local,  # [B, T, H, R] fp32: LOCAL only
    p_dk_prev,  # [B, T, H, R] fp32: LOCAL only
    p_dk,  # [B, T, H, R], out
    p_dv,  # [B, T, H, P], in (LOCAL) and out
    p_dlast,  # [B, H, R] fp32, out
    T,
    N,
    H,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    LAG: tl.constexpr,
    LOCAL: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    LEVEL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Kernel of the gradients of keys and values; one program computes one chunk of one head."""
    i_b, i_c, i_h, i_n = place(tl.program_id(0), N, H)
    t = i_c * S + tl.program_id(1) * BT + tl.arange(0, BT)
    r = tl.arange(0, BR)
    p_d = p_dstates + i_n * ((2 * R + P) * R)
    dgram = load_matrix(p_d, R, R, BR, BR)
    dtransition = load_matrix(p_d + R * R, R, R, BR, BR)
    dvalue_map = load_matrix(p_d + 2 * R * R, P, R, BP, BR)

    dgram = split(dgram + tl.trans(dgram), LEVEL + 1, INTERPRET)
    dtransition = split(dtransition, LEVEL + 1, INTERPRET)
    dvalue_map = split(dvalue_map, LEVEL + 1, INTERPRET)

    z, v = load_written(p_k, p_v, p_ids, i_b, i_c, i_h, t, T, H, R, P, S, BR, BP, INPUT_PARTS, DOCUMENTS, INTERPRET)
    z_prev = load_previous_keys(p_k, p_last, p_ids, i_b, i_h, t, T, H, R, BR, DOCUMENTS)
    if DOCUMENTS:
        written = load_ids(p_ids, i_b, t, T) == load_ids(p_ids, i_b, i_c * S + S - 1, T)
        z_prev = tl.where(written[:, None], z_prev, 0.0)
    z_prev = split(z_prev, INPUT_PARTS, INTERPRET)
    dz = mul(z, dgram, LEVEL) + mul(z_prev, transpose(dtransition), LEVEL)
    if not LAG:
        dz += mul(v, dvalue_map, LEVEL)
    dv = mul(z_prev if LAG else z, transpose(dvalue_map), LEVEL)

    # Key t is also z_prev of token t + 1. The chunk's last key is that of the next chunk's first token.
    z, v = load_written(p_k, p_v, p_ids, i_b, i_c, i_h, t + 1, T, H, R, P, S, BR, BP, INPUT_PARTS, DOCUMENTS, INTERPRET)
    dz_next = mul(z, dtransition, LEVEL)
    if LAG:
        dz_next += mul(v, dvalue_map, LEVEL)
    edge = read_row_of_previous(p_k, p_v, p_ids, p_dstates, i_b, i_c + 1, i_h, T, N, H, R, P, S, BR, BP, LAG, DOCUMENTS)
    dz_next = tl.where((t == i_c * S + S - 1)[:, None], edge[None, :], dz_next)
    if DOCUMENTS:
        same = load_ids(p_ids, i_b, t, T) == load_ids(p_ids, i_b, t + 1, T)
        dz_next = tl.where(same[:, None], dz_next, 0.0)
    dz += dz_next
    if LOCAL:
        dz += load_rows(p_dk_local, i_b, i_h, t, T, H, R, BR)
        dz_next = load_rows(p_dk_prev, i_b, i_h, t + 1, T, H, R, BR)
        if DOCUMENTS:
            dz_next = tl.where(same[:, None], dz_next, 0.0)
        dz += dz_next
        dv += load_rows(p_dv, i_b, i_h, t, T, H, P, BP)
    store_rows(p_dk, dz, i_b, i_h, t, T, H, R, BR)
    store_rows(p_dv, dv, i_b, i_h, t, T, H, P, BP)

    if (i_c == 0) & (tl.program_id(1) == 0):
        dlast = read_row_of_previous(
            p_k, p_v, p_ids, p_dstates, i_b, i_c, i_h, T, N, H, R, P, S, BR, BP, LAG, DOCUMENTS
        )
        if LOCAL:
            dlast += tl.load(p_dk_prev + (i_b * T * H + i_h) * R + r, mask=r < R, other=0.0).to(tl.float32)
        tl.store(p_dlast + (i_b * H + i_h) * R + r, dlast, mask=r < R)


@device_function
def load_written(
    p_k,
    p_v,
    p_ids,
    i_b,
    i_c,
    i_h,
    t,
    T,
    H,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Load keys and values at t in parts; zero outside the document in which chunk i_c ends."""
    z = load_rows(p_k, i_b, i_h, t, T, H, R, BR)
    v = load_rows(p_v, i_b, i_h, t, T, H, P, BP)
    if DOCUMENTS:
        written = (load_ids(p_ids, i_b, t, T) == load_ids(p_ids, i_b, i_c * S + S - 1, T))[:, None]
        z = tl.where(written, z, 0.0)
        v = tl.where(written, v, 0.0)
    return split(z, INPUT_PARTS, INTERPRET), split(v, INPUT_PARTS, INTERPRET)


@device_function
def read_row_of_previous(
    p_k,
    p_v,
    p_ids,
    p_dstates,
    i_b,
    i_c,
    i_h,
    T,
    N,
    H,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    LAG: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """The gradient that the key before chunk i_c receives from the chunk's first token through the sums: `[BR]`, zero behind the
    row."""
    t = i_c * S
    inside = t < T
    r, p = tl.arange(0, BR), tl.arange(0, BP)
    o = (i_b * T + t) * H + i_h
    p_d = p_dstates + ((i_b * N + i_c) * H + i_h) * ((2 * R + P) * R) + R * R
    if DOCUMENTS:
        inside = inside & (load_ids(p_ids, i_b, t, T) == load_ids(p_ids, i_b, t + S - 1, T))
    z = tl.load(p_k + o * R + r, mask=inside & (r < R), other=0.0).to(tl.float32)
    square = inside & (r < R)[:, None] & (r < R)[None, :]
    dz = tl.sum(z[:, None] * tl.load(p_d + r[:, None] * R + r[None, :], mask=square, other=0.0), 0)
    if LAG:
        v = tl.load(p_v + o * P + p, mask=inside & (p < P), other=0.0).to(tl.float32)
        wide = inside & (p < P)[:, None] & (r < R)[None, :]
        dz += tl.sum(v[:, None] * tl.load(p_d + R * R + p[:, None] * R + r[None, :], mask=wide, other=0.0), 0)
    return dz
