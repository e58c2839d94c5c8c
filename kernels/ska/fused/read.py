"""Forward kernel of the read: y = C_t G_t^-1 (s M_t G_t^-1)^K q_t for the tokens of a chunk."""

import triton
import triton.language as tl

from ...launch import device_function
from .solve import causal_mul, document_masks, filter_step, keep_old, solve
from .tiles import (
    load_matrix,
    load_previous_keys,
    load_rows,
    mul,
    place,
    split,
    store_rows,
    transpose,
)


@triton.jit(do_not_specialize=["n", "T", "N", "H"])
def read_forward(
    p_q,  # [B, T, H, R]
    p_k,  # [B, T, H, R]
    p_v,  # [B, T, H, P]
    p_last,  # [B, H, R] fp32
    p_ids,  # [B, T] int32
    p_scale,  # [H] fp32
    p_states,  # [B, N, H, 2R + P, R] fp32: entering gram, transition, value map
    p_inverse,  # [n, R, R] fp32: G^-1
    p_w,  # [n, S, R] fp32: LOCAL only
    p_cold,  # [n] int32
    p_y,  # [B, T, H, P], out
    p_xs,  # [POWER + 1, B, T, H, R] fp32, out where SAVE: x_j = G^-1 (s M G^-1)^j q
    ridge,
    n,
    T,
    N,
    H,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    POWER: tl.constexpr,
    LAG: tl.constexpr,
    LOCAL: tl.constexpr,
    COLD: tl.constexpr,
    SAVE: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    QUERY_PARTS: tl.constexpr,
    LEVEL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Kernel of the read; one program computes the tokens of one chunk of one head.

    The first COLD programs look for cold chunks, each in its share of all chunks, and refine their solves. They begin first,
    since a cold chunk takes longest. With COLD 0 no solve of the exact form is refined."""
    inputs = (p_q, p_k, p_v, p_last, p_ids, p_scale, p_states, p_inverse, p_w, p_cold, p_y, p_xs, ridge, n, T, N, H)
    i = tl.program_id(0) - COLD
    if i >= 0:
        if COLD == 0 or tl.load(p_cold + i) == 0:
            read_chunk(
                i,
                inputs,
                R,
                P,
                S,
                BT,
                BR,
                BP,
                POWER,
                LAG,
                LOCAL,
                False,
                SAVE,
                DOCUMENTS,
                INPUT_PARTS,
                QUERY_PARTS,
                LEVEL,
                INTERPRET,
            )
    elif COLD > 0:
        for j in range(i + COLD, n, COLD):
            if tl.load(p_cold + j) != 0:
                read_chunk(
                    j,
                    inputs,
                    R,
                    P,
                    S,
                    BT,
                    BR,
                    BP,
                    POWER,
                    LAG,
                    LOCAL,
                    True,
                    SAVE,
                    DOCUMENTS,
                    INPUT_PARTS,
                    QUERY_PARTS,
                    LEVEL,
                    INTERPRET,
                )


@device_function
def read_chunk(
    i,
    inputs,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    POWER: tl.constexpr,
    LAG: tl.constexpr,
    LOCAL: tl.constexpr,
    REFINE: tl.constexpr,
    SAVE: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    QUERY_PARTS: tl.constexpr,
    LEVEL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """The read of the chunk and head i."""
    (p_q, p_k, p_v, p_last, p_ids, p_scale, p_states, p_inverse, p_w, p_cold, p_y, p_xs, ridge, n, T, N, H) = inputs
    i_b, i_c, i_h, i_n = place(i, N, H)
    cold = tl.load(p_cold + i_n)
    t = i_c * S + tl.program_id(1) * BT + tl.arange(0, BT)
    p_states += i_n * ((2 * R + P) * R)
    inverse = split(load_matrix(p_inverse + i_n * R * R, R, R, BR, BR), 3, INTERPRET)
    old, causal = document_masks(p_ids, i_b, i_c, t, T, S, DOCUMENTS)
    # Placeholders for names that the form without local terms does not use; they generate no code.
    z = inverse
    z_prev = inverse
    w = inverse
    if LOCAL:
        z = split(load_rows(p_k, i_b, i_h, t, T, H, R, BR), INPUT_PARTS, INTERPRET)
        z_prev = load_previous_keys(p_k, p_last, p_ids, i_b, i_h, t, T, H, R, BR, DOCUMENTS)
        z_prev = split(z_prev, INPUT_PARTS, INTERPRET)
        w = split(load_matrix(p_w + i_n * S * R, S, R, BT, BR), 3, INTERPRET)
    scale = tl.load(p_scale + i_h)
    rows = n.to(tl.int64) // N * T
    x = load_rows(p_q, i_b, i_h, t, T, H, R, BR)
    x = solve(
        x, inverse, w, z, p_states, causal, old, cold, ridge, R, BR, QUERY_PARTS, LOCAL, REFINE, DOCUMENTS, INTERPRET
    )
    for j in tl.static_range(POWER):  # pyright: ignore[reportGeneralTypeIssues]
        if SAVE:
            store_rows(p_xs + j * (rows * R), x, i_b, i_h, t, T, H, R, BR)
        transition = split(load_matrix(p_states + R * R, R, R, BR, BR), 3, INTERPRET)
        x = scale * filter_step(x, transition, z, z_prev, causal, old, LOCAL, DOCUMENTS, INTERPRET)
        x = solve(x, inverse, w, z, p_states, causal, old, cold, ridge, R, BR, 3, LOCAL, REFINE, DOCUMENTS, INTERPRET)
    if SAVE:
        store_rows(p_xs + POWER * (rows * R), x, i_b, i_h, t, T, H, R, BR)
    value_map = split(load_matrix(p_states + 2 * R * R, P, R, BP, BR), LEVEL + 1, INTERPRET)
    y = mul(split(keep_old(x, old, DOCUMENTS), LEVEL + 1, INTERPRET), transpose(value_map), LEVEL)
    if LOCAL:
        v = split(load_rows(p_v, i_b, i_h, t, T, H, P, BP), INPUT_PARTS, INTERPRET)
        x_p = split(x, LEVEL + 1, INTERPRET)
        y += causal_mul(x_p, z_prev if LAG else z, v, causal, LEVEL, INTERPRET)
    store_rows(p_y, y, i_b, i_h, t, T, H, P, BP)
