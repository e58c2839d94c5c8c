"""Gradients of b and c, summed over the heads that share them (docs/kernels.md, SSD)."""

import triton
import triton.language as tl

from .tiles import load_rows, load_state, store_rows, to_dtype_of


@triton.jit
def _one_side(
    p_rows,  # [B, T, H, P]: dy, or x for b
    p_own,  # [B, T, G, N]: c, or b
    p_other,  # [B, T, G, N]: b, or c
    p_matrix,  # [B, C, H, N, P]: entering states, or gradients of leaving states
    p_weight,  # [B, H, C * S] fp32: enter, or leave
    p_steps,
    p_dproducts,
    p_out,  # [B, T, G, N]: dc, or db
    p_sums,  # [B, H, C * S] fp32: old, or kept
    T,
    C,
    H,
    G,
    SPLITS,
    P: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    IS_B: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c = i // C, i % C
    i_g, i_t = tl.program_id(1) // 2, tl.program_id(2)
    share = H // G
    o = i_t * BT + tl.arange(0, BT)
    t = i_c * S + o
    own = load_rows(p_own, i_b, i_g, t, T, G, N, BN, INTERPRET)
    total = tl.zeros([BT, BN], tl.float32)
    for i_h in tl.range(i_g * share, i_g * share + share, num_stages=STAGES):
        vectors = (i_b * H + i_h) * C * S + i_c * S + o
        rows = load_rows(p_rows, i_b, i_h, t, T, H, P, BP, INTERPRET)
        matrix = load_state(p_matrix, (i_b * C + i_c) * H + i_h, N, P, BN, BP, INTERPRET)
        weight = tl.load(p_weight + vectors)
        if IS_B:
            weight *= tl.load(p_steps + vectors)
        one = tl.dot(rows, tl.trans(matrix), input_precision=PRECISION) * weight[:, None]
        tl.store(p_sums + vectors, tl.sum(one * own.to(tl.float32), 1))
        total += one
    # Tiles of dproducts with rows of this program's tokens: rows of the matrix are s, the tokens of b.
    for i_u in range(i_t if IS_B else 0, S // BT if IS_B else i_t + 1):
        u = i_u * BT + tl.arange(0, BT)
        p = o[:, None] * S + u[None, :] if IS_B else u[None, :] * S + o[:, None]
        tile = tl.zeros([BT, BT], tl.float32)
        for split in range(SPLITS):
            block = (((split * (tl.num_programs(0) // C) + i_b) * C + i_c) * G + i_g) * (S * S)
            tile += tl.load(p_dproducts + block + p)
        other = load_rows(p_other, i_b, i_g, i_c * S + u, T, G, N, BN, INTERPRET)
        total = tl.dot(to_dtype_of(tile, p_rows, INTERPRET), other, total, input_precision=PRECISION)
    store_rows(p_out, total, i_b, i_g, t, T, G, N, BN)


@triton.jit(do_not_specialize=["T", "C", "H", "G"])
def keys_backward(
    p_x,  # [B, T, H, P]
    p_dy,  # [B, T, H, P]
    p_b,  # [B, T, G, N]
    p_c,  # [B, T, G, N]
    p_states,  # [B, C, H, N, P]: the state that each chunk enters with
    p_dstates,  # [B, C, H, N, P]: gradient of the state that each chunk leaves
    p_steps,  # [B, H, C * S] fp32, and see decays.py for the next two
    p_enter,
    p_leave,
    p_dproducts,  # [SPLITS, B, C, G, S, S] fp32: gradient of b_s . c_t, row s, column t >= s
    p_db,  # [B, T, G, N], out
    p_dc,  # [B, T, G, N], out
    p_kept,  # [B, H, C * S] fp32, out: <D, what token s leaves in the state>, D the gradient of the leaving state
    p_old,  # likewise: <dy_t, what token t reads from the entering state>
    T,
    C,
    H,
    G,
    SPLITS,
    P: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One program: BT tokens of one chunk, gradients of c (program_id(1) even) or of b (odd) from all heads of the group:

    dc_t = sum_h enter_t H dy_t + sum_{s <= t} dP_st b_s,   db_s = sum_h dt_s leave_s D x_s + sum_{t >= s} dP_st c_t.
    """
    if tl.program_id(1) % 2 == 0:
        _one_side(
            p_dy, p_c, p_b, p_states, p_enter, p_steps, p_dproducts, p_dc, p_old,
            T, C, H, G, SPLITS, P, N, S, BT, BP, BN, False, STAGES, PRECISION, INTERPRET,
        )  # fmt: skip
    else:
        _one_side(
            p_x, p_b, p_c, p_dstates, p_leave, p_steps, p_dproducts, p_db, p_kept,
            T, C, H, G, SPLITS, P, N, S, BT, BP, BN, True, STAGES, PRECISION, INTERPRET,
        )  # fmt: skip
