"""Backward of the chunk-causal read, from dy to the gradients of queries and of each chunk's entering state.

The same mathematics as `read_backward.py` without the chunk's own keys, which leaves room to do it in one launch.
"""

import triton
import triton.language as tl

from .solve import solve
from .tiles import (
    add_matrix,
    add_transposed,
    load_columns,
    load_ids,
    load_matrix,
    load_rows,
    mul,
    place,
    split,
    store_matrix,
    store_rows,
)


@triton.jit(do_not_specialize=["T", "N", "H"])
def chunk_backward(
    p_dy,  # [B, T, H, P]
    p_xs,  # [POWER + 1, B, T, H, R] fp32
    p_ids,  # [B, T] int32
    p_scale,  # [H] fp32
    p_states,  # [B, N, H, 2R + P, R] fp32
    p_inverse,  # [n, R, R] fp32: G^-1
    p_cold,  # [n] int32
    p_dq,  # [B, T, H, R], out
    p_dscale,  # [n] fp32, out
    p_dstates,  # [B, N, H, 2R + P, R] fp32, out: gradient of the entering state
    ridge,
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
    DOCUMENTS: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    LEVEL: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Kernel of the chunk-causal backward pass; one program computes one chunk of one head."""
    i_b, i_c, i_h, i_n = place(tl.program_id(0), N, H)
    cold = tl.load(p_cold + i_n)
    p_states += i_n * ((2 * R + P) * R)
    p_dstates += i_n * ((2 * R + P) * R)
    inverse = split(load_matrix(p_inverse + i_n * R * R, R, R, BR, BR), 3, INTERPRET)
    scale = tl.load(p_scale + i_h)
    rows = tl.num_programs(0).to(tl.int64) // N * T
    dscale = 0.0
    none = inverse  # stands for what only local terms use
    for i_s in tl.static_range(S // BT):  # pyright: ignore[reportGeneralTypeIssues]
        t = i_c * S + i_s * BT + tl.arange(0, BT)
        dy = load_rows(p_dy, i_b, i_h, t, T, H, P, BP)
        if DOCUMENTS:
            # Rows that do not see the entering state: with these at zero they stay so.
            dy = tl.where((load_ids(p_ids, i_b, t, T) == load_ids(p_ids, i_b, i_c * S - 1, T))[:, None], dy, 0.0)
        dy = split(dy, INPUT_PARTS, INTERPRET)
        value_map = split(load_matrix(p_states + 2 * R * R, P, R, BP, BR), 3, INTERPRET)
        a = mul(dy, value_map, 2)
        p_x = p_xs + POWER * (rows * R)
        x_t = split(load_columns(p_x, i_b, i_h, t, T, H, R, BR), LEVEL + 1, INTERPRET)
        add_transposed(p_dstates + 2 * R * R, mul(x_t, dy, LEVEL), i_s == 0, R, P, BR, BP)
        for i in tl.static_range(POWER + 1):  # pyright: ignore[reportGeneralTypeIssues]
            a = solve(
                a, inverse, none, none, p_states, none, none, cold, ridge, R, BR, 3, False, False, DOCUMENTS, INTERPRET
            )
            a_p = split(a, LEVEL + 1, INTERPRET)
            # Or its transpose: the gradient of a symmetric matrix counts as dG + dG^T.
            add_matrix(p_dstates, -mul(x_t, a_p, LEVEL), i == 0 and i_s == 0, R, R, BR, BR)
            if i < POWER:
                p_x = p_xs + (POWER - 1 - i) * (rows * R)
                transition = split(load_matrix(p_states + R * R, R, R, BR, BR), 3, INTERPRET)
                back = mul(split(a, 3, INTERPRET), transition, 2)
                # <a, M x> read from the other side: <M^T a, x>.
                dscale += tl.sum(tl.sum(back * load_rows(p_x, i_b, i_h, t, T, H, R, BR), 1), 0)
                x_t = split(load_columns(p_x, i_b, i_h, t, T, H, R, BR), LEVEL + 1, INTERPRET)
                add_transposed(p_dstates + R * R, scale * mul(x_t, a_p, LEVEL), i == 0 and i_s == 0, R, R, BR, BR)
                a = scale * back
        store_rows(p_dq, a, i_b, i_h, t, T, H, R, BR)
    if POWER == 0:
        store_matrix(p_dstates + R * R, tl.zeros([BR, BR], tl.float32), R, R, BR, BR)
    tl.store(p_dscale + i_n, dscale)
