"""Gradients of b and c, summed over the heads that share them (docs/design/kernels.md, SSD)."""

import triton
import triton.language as tl

from ...launch import device_function
from .tiles import load_rows, load_state, store_rows, to_dtype_of


@device_function
def _one_side(
    p_rows,  # [B, T, H, P]: dy, or x for b
    p_own,  # [B, T, G, N]: c, or b
    p_other,  # [B, T, G, N]: b, or c
    p_matrix,  # [B, C, H, N, P]: entering states, or gradients of leaving states
    p_dstates,  # [B, C, H, N, P]
    p_weight,  # [B, H, C * S] fp32: enter, or leave
    p_steps,
    p_keep,
    p_dproducts,
    p_out,  # [B, T, G, N]: dc, or db
    p_sums,  # [B, H, C * S] fp32: old, or kept
    p_inner,
    T,
    C,
    H,
    G,
    SPLITS,
    P: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    IS_B: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c, i_g = i // C, i % C, tl.program_id(1) // 2
    share = H // G
    start = i_c * S
    o = tl.arange(0, S)
    row, t = i_b * T, start + o
    own = load_rows(p_own, row, i_g, t, T, G, N, BN, INTERPRET)
    total = tl.zeros([S, BN], tl.float32)
    for i_h in tl.range(i_g * share, i_g * share + share, num_stages=STAGES):
        vectors = (i_b * H + i_h) * C * S + start
        i_state = (i_b * C + i_c) * H + i_h
        rows = load_rows(p_rows, row, i_h, t, T, H, P, BP, INTERPRET)
        matrix = load_state(p_matrix, i_state, N, P, BN, BP, INTERPRET)
        weight = tl.load((p_weight + vectors) + o)
        if IS_B:
            weight *= tl.load((p_steps + vectors) + o)
        scaled = rows.to(tl.float32) * weight[:, None]
        total = tl.dot(to_dtype_of(scaled, p_rows, INTERPRET), tl.trans(matrix), total, input_precision=PRECISION)
        read = tl.dot(own, matrix, input_precision=PRECISION)
        tl.store((p_sums + vectors) + o, tl.sum(read * scaled, 1))
        if not IS_B:
            dstate = load_state(p_dstates, i_state, N, P, BN, BP, INTERPRET)
            inner = tl.sum(tl.sum(matrix.to(tl.float32) * dstate.to(tl.float32), 1), 0)
            i_keep = (i_b * H + i_h) * C + i_c
            tl.store(p_inner + i_keep, inner * tl.load(p_keep + i_keep))
    pairs = tl.zeros([S, S], tl.float32)  # rows are the tokens of `own`
    for split in range(SPLITS):
        block = p_dproducts + (((split * (tl.num_programs(0) // C) + i_b) * C + i_c) * G + i_g) * (S * S)
        pairs += tl.load(block + (o[:, None] * S + o[None, :] if IS_B else o[None, :] * S + o[:, None]))
    other = load_rows(p_other, row, i_g, t, T, G, N, BN, INTERPRET)
    total = tl.dot(to_dtype_of(pairs, p_rows, INTERPRET), other, total, input_precision=PRECISION)
    store_rows(p_out, total, row, i_g, t, T, G, N, BN)


@triton.jit(do_not_specialize=["T", "C", "H", "G", "SPLITS"])
def keys_backward(
    p_x,  # [B, T, H, P]
    p_dy,  # [B, T, H, P]
    p_b,  # [B, T, G, N]
    p_c,  # [B, T, G, N]
    p_states,  # [B, C, H, N, P]: the state that each chunk enters with
    p_dstates,  # [B, C, H, N, P]: gradient of the state that each chunk leaves
    p_steps,  # [B, H, C * S] fp32, and see decays.py for the next three
    p_enter,
    p_leave,
    p_keep,  # [B, H, C] fp32
    p_dproducts,  # [SPLITS, B, C, G, S, S] fp32: gradient of b_s . c_t, row s, column t
    p_db,  # [B, T, G, N], out
    p_dc,  # [B, T, G, N], out
    p_kept,  # [B, H, C * S] fp32, out: <D, what token s leaves in the state>, D the gradient of the leaving state
    p_old,  # likewise: <dy_t, what token t reads from the entering state>
    p_inner,  # [B, H, C] fp32, out: keep * <entering state, gradient of the leaving state>
    T,
    C,
    H,
    G,
    SPLITS,
    P: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Kernel of the gradients of b and c; one program computes one chunk of one group, c where program_id(1) is even, b where it
    is odd. With H the entering state and D the gradient of the leaving one:

    dc_t = sum_h enter_t H dy_t + sum_{s <= t} dP_st b_s,   db_s = sum_h dt_s leave_s D x_s + sum_{t >= s} dP_st c_t.
    """
    if tl.program_id(1) % 2 == 0:
        _one_side(
            p_dy, p_c, p_b, p_states, p_dstates, p_enter, p_steps, p_keep, p_dproducts, p_dc, p_old, p_inner,
            T, C, H, G, SPLITS, P, N, S, BP, BN, False, STAGES, PRECISION, INTERPRET,
        )  # fmt: skip
    else:
        _one_side(
            p_x, p_b, p_c, p_dstates, p_dstates, p_leave, p_steps, p_keep, p_dproducts, p_db, p_kept, p_inner,
            T, C, H, G, SPLITS, P, N, S, BP, BN, True, STAGES, PRECISION, INTERPRET,
        )  # fmt: skip
