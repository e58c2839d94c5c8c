"""Backward kernels of the exact form's read, which differentiate no factorisation (docs/design/kernels.md, "Backward").

`read_backward` goes from dy to the gradient of x_K; `step_backward` then goes from each x_j to x_{j-1}, and to q.
"""

import triton
import triton.language as tl

from ...launch import device_function
from .solve import document_masks, keep_old, solve
from .tiles import (
    add_matrix,
    add_transposed,
    load_columns,
    load_matrix,
    load_previous_keys,
    load_rows,
    mul,
    place,
    split,
    store_columns,
    store_matrix,
    store_rows,
    transpose,
)


@triton.jit(do_not_specialize=["T", "N", "H"])
def read_backward(
    p_k,  # [B, T, H, R]
    p_v,  # [B, T, H, P]
    p_dy,  # [B, T, H, P]
    p_x,  # [B, T, H, R] fp32: x_K
    p_last,  # [B, H, R] fp32
    p_ids,  # [B, T] int32
    p_states,  # [B, N, H, 2R + P, R] fp32
    p_a,  # [B, T, H, R] fp32, out: gradient of x_K
    p_dk,  # [B, T, H, R] fp32, out: of keys, through the chunk's own; write_backward adds the rest
    p_dk_prev,  # [B, T, H, R] fp32, out: the same for z_{t-1}, in row t
    p_dv,  # [B, T, H, P], out
    p_dstates,  # [B, N, H, 2R + P, R] fp32, out: the value map's part
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
    INPUT_PARTS: tl.constexpr,
    LEVEL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Kernel from dy to the gradients of x_K, the values and the value map; one program computes one chunk of one head."""
    i_b, i_c, i_h, i_n = place(tl.program_id(0), N, H)
    offset = i_n * ((2 * R + P) * R) + 2 * R * R
    value_map = split(load_matrix(p_states + offset, P, R, BP, BR), 3, INTERPRET)
    t = i_c * S + tl.arange(0, S)
    old, causal = document_masks(p_ids, i_b, i_c, t, T, S, DOCUMENTS)
    dy = load_rows(p_dy, i_b, i_h, t, T, H, P, BP)
    dy_old = keep_old(dy, old, DOCUMENTS)
    a = mul(split(dy_old, INPUT_PARTS, INTERPRET), value_map, 2)
    x_t = split(load_columns(p_x, i_b, i_h, t, T, H, R, BR), LEVEL + 1, INTERPRET)
    dvalue_map = mul(x_t, split(dy_old, INPUT_PARTS, INTERPRET), LEVEL)
    add_transposed(p_dstates + offset, dvalue_map, True, R, P, BR, BP)
    v = split(load_rows(p_v, i_b, i_h, t, T, H, P, BP), INPUT_PARTS, INTERPRET)
    if LAG:
        read_key = load_previous_keys(p_k, p_last, p_ids, i_b, i_h, t, T, H, R, BR, DOCUMENTS)
    else:
        read_key = load_rows(p_k, i_b, i_h, t, T, H, R, BR)
    read_key = split(read_key, INPUT_PARTS, INTERPRET)
    dread = tl.where(causal, mul(split(dy, INPUT_PARTS, INTERPRET), transpose(v), 2), 0.0)
    dread = split(dread, 3, INTERPRET)
    a += mul(dread, read_key, 2)
    dread_key = mul(x_t, dread, LEVEL)
    store_columns(p_dk_prev if LAG else p_dk, dread_key, i_b, i_h, t, T, H, R, BR)
    zero = tl.zeros([S, BR], tl.float32)
    store_rows(p_dk if LAG else p_dk_prev, zero, i_b, i_h, t, T, H, R, BR)
    x = split(load_rows(p_x, i_b, i_h, t, T, H, R, BR), LEVEL + 1, INTERPRET)
    read = tl.where(causal, mul(x, transpose(read_key), LEVEL), 0.0)
    dy_t = split(load_columns(p_dy, i_b, i_h, t, T, H, P, BP), INPUT_PARTS, INTERPRET)
    dv = mul(dy_t, split(read, LEVEL + 1, INTERPRET), LEVEL)
    store_columns(p_dv, dv, i_b, i_h, t, T, H, P, BP)
    store_rows(p_a, a, i_b, i_h, t, T, H, R, BR)


@triton.jit(do_not_specialize=["n", "T", "N", "H"])
def step_backward(
    p_k,  # [B, T, H, R]
    p_last,  # [B, H, R] fp32
    p_ids,  # [B, T] int32
    p_scale,  # [H] fp32
    p_states,  # [B, N, H, 2R + P, R] fp32
    p_inverse,  # [n, R, R] fp32: G^-1
    p_w,  # [n, S, R] fp32
    p_cold,  # [n] int32
    p_x,  # [B, T, H, R] fp32: x_j
    p_x_before,  # [B, T, H, R] fp32: x_{j-1}, unless FINAL
    p_a,  # [B, T, H, R] fp32: in, gradient of x_j; out, of x_{j-1}
    p_dq,  # [B, T, H, R], out: FINAL only
    p_dk,  # [B, T, H, R] fp32, in and out
    p_dk_prev,  # [B, T, H, R] fp32, in and out
    p_dscale,  # [n] fp32, in and out
    p_dstates,  # [B, N, H, 2R + P, R] fp32, in and out: gradient of the entering state
    ridge,
    n,
    T,
    N,
    H,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    LAG: tl.constexpr,
    COLD: tl.constexpr,
    FIRST: tl.constexpr,
    FINAL: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    LEVEL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Backward step through x_j = G^-1 (s M x_{j-1}), or for FINAL (j = 0) through x_0 = G^-1 q. FIRST: j = K.

    The first COLD programs look for cold chunks, as in `read_forward`; with COLD 0 no solve is refined."""
    inputs = (
        p_k,
        p_last,
        p_ids,
        p_scale,
        p_states,
        p_inverse,
        p_w,
        p_cold,
        p_x,
        p_x_before,
        p_a,
        p_dq,
        p_dk,
        p_dk_prev,
        p_dscale,
        p_dstates,
        ridge,
        T,
        N,
        H,
    )
    i = tl.program_id(0) - COLD
    if i >= 0:
        if COLD == 0 or tl.load(p_cold + i) == 0:
            step_chunk(i, inputs, R, P, S, BR, False, FIRST, FINAL, DOCUMENTS, INPUT_PARTS, LEVEL, INTERPRET)
    elif COLD > 0:
        for j in range(i + COLD, n, COLD):
            if tl.load(p_cold + j) != 0:
                step_chunk(j, inputs, R, P, S, BR, True, FIRST, FINAL, DOCUMENTS, INPUT_PARTS, LEVEL, INTERPRET)


@device_function
def step_chunk(
    i,
    inputs,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    BR: tl.constexpr,
    REFINE: tl.constexpr,
    FIRST: tl.constexpr,
    FINAL: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    LEVEL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """The backward step of the chunk and head i."""
    (
        p_k,
        p_last,
        p_ids,
        p_scale,
        p_states,
        p_inverse,
        p_w,
        p_cold,
        p_x,
        p_x_before,
        p_a,
        p_dq,
        p_dk,
        p_dk_prev,
        p_dscale,
        p_dstates,
        ridge,
        T,
        N,
        H,
    ) = inputs
    i_b, i_c, i_h, i_n = place(i, N, H)
    cold = tl.load(p_cold + i_n)
    p_states += i_n * ((2 * R + P) * R)
    p_dstates += i_n * ((2 * R + P) * R)
    inverse = split(load_matrix(p_inverse + i_n * R * R, R, R, BR, BR), 3, INTERPRET)
    scale = tl.load(p_scale + i_h)
    dscale = 0.0
    t = i_c * S + tl.arange(0, S)
    old, causal = document_masks(p_ids, i_b, i_c, t, T, S, DOCUMENTS)
    z = split(load_rows(p_k, i_b, i_h, t, T, H, R, BR), INPUT_PARTS, INTERPRET)
    w = split(load_matrix(p_w + i_n * S * R, S, R, S, BR), 3, INTERPRET)
    a = load_rows(p_a, i_b, i_h, t, T, H, R, BR)
    a = solve(a, inverse, w, z, p_states, causal, old, cold, ridge, R, BR, 3, True, REFINE, DOCUMENTS, INTERPRET)
    if FINAL:
        store_rows(p_dq, a, i_b, i_h, t, T, H, R, BR)
    a_old = keep_old(a, old, DOCUMENTS)
    a_z = split(tl.where(causal, mul(split(a, 3, INTERPRET), transpose(z), 2), 0.0), 3, INTERPRET)
    if not FINAL:
        transition = split(load_matrix(p_states + R * R, R, R, BR, BR), 3, INTERPRET)
        back = mul(split(a_old, 3, INTERPRET), transition, 2)
        z_prev = load_previous_keys(p_k, p_last, p_ids, i_b, i_h, t, T, H, R, BR, DOCUMENTS)
        z_prev = split(z_prev, INPUT_PARTS, INTERPRET)
        back += mul(a_z, z_prev, 2)
        # <a, M x> read from the other side: <M^T a, x>.
        dscale += tl.sum(tl.sum(back * load_rows(p_x_before, i_b, i_h, t, T, H, R, BR), 1), 0)
        store_rows(p_a, scale * back, i_b, i_h, t, T, H, R, BR)
    # No factor below is conditioned by the ridge, so plain products suffice.
    a_p = split(a, LEVEL + 1, INTERPRET)
    a_old_p = split(a_old, LEVEL + 1, INTERPRET)
    x_t = split(load_columns(p_x, i_b, i_h, t, T, H, R, BR), LEVEL + 1, INTERPRET)
    # Or its transpose: the gradient of a symmetric matrix counts as dG + dG^T.
    add_matrix(p_dstates, -mul(x_t, a_old_p, LEVEL), FIRST, R, R, BR, BR)
    # Twice, once for each slot of the symmetric z z^T.
    seen_by = tl.trans(causal)
    z_x = tl.where(seen_by, mul(z, x_t, LEVEL), 0.0)
    z_a = split(tl.where(seen_by, mul(z, transpose(a_p), LEVEL), 0.0), LEVEL + 1, INTERPRET)
    dz = load_rows(p_dk, i_b, i_h, t, T, H, R, BR)
    dz -= mul(split(z_x, LEVEL + 1, INTERPRET), a_p, LEVEL)
    x = split(load_rows(p_x, i_b, i_h, t, T, H, R, BR), LEVEL + 1, INTERPRET)
    dz -= mul(z_a, x, LEVEL)
    if not FINAL:
        before_t = split(load_columns(p_x_before, i_b, i_h, t, T, H, R, BR), LEVEL + 1, INTERPRET)
        dtransition = scale * mul(before_t, a_old_p, LEVEL)
        add_transposed(p_dstates + R * R, dtransition, FIRST, R, R, BR, BR)
        # `tl.sum` above is declared never to return.
        z_before = tl.where(seen_by, mul(z_prev, before_t, LEVEL), 0.0)  # pyright: ignore[reportUnboundVariable]
        dz += scale * mul(split(z_before, LEVEL + 1, INTERPRET), a_p, LEVEL)
        before = split(load_rows(p_x_before, i_b, i_h, t, T, H, R, BR), LEVEL + 1, INTERPRET)
        dz_prev = load_rows(p_dk_prev, i_b, i_h, t, T, H, R, BR)
        dz_prev += scale * mul(z_a, before, LEVEL)
        store_rows(p_dk_prev, dz_prev, i_b, i_h, t, T, H, R, BR)
    store_rows(p_dk, dz, i_b, i_h, t, T, H, R, BR)
    if FIRST:
        tl.store(p_dscale + i_n, dscale)
        if FINAL:
            store_matrix(p_dstates + R * R, tl.zeros([BR, BR], tl.float32), R, R, BR, BR)
    elif not FINAL:
        tl.store(p_dscale + i_n, tl.load(p_dscale + i_n) + dscale)
