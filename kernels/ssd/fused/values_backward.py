"""Gradients of the values x, and the terms of `C B^T`, step sizes and decays from the same token pairs (docs/design/kernels.md)."""

import triton
import triton.language as tl

from .tiles import decays_between, load_ids, load_rows, load_state, store_rows, to_dtype_of


@triton.jit(do_not_specialize=["T", "C", "H", "G", "HEADS"])
def values_backward(
    p_x,  # [B, T, H, P]
    p_dy,  # [B, T, H, P]
    p_b,  # [B, T, G, N]
    p_c,  # [B, T, G, N]
    p_d,  # [H] fp32, SKIP only
    p_dstates,  # [B, C, H, N, P]: gradient of the state that each chunk leaves
    p_steps,  # [B, H, C * S] fp32, and see decays.py for the next two
    p_log,
    p_leave,
    p_ids,  # [B, T] int32, DOCUMENTS only
    p_dx,  # [B, T, H, P], out
    p_dsteps,  # [B, H, C * S] fp32, out: gradient of dt through dt x alone
    p_dskips,  # likewise: <dy_s, x_s>, SKIP only
    p_later,  # likewise: <dy_t, what token t reads from earlier tokens of its chunk>
    p_earlier,  # likewise: the same of what later tokens of the chunk read from s
    p_dproducts,  # [splits, B, C, G, S, S] fp32, out: gradient of b_s . c_t (row s, column t), of HEADS heads
    T,
    C,
    H,
    G,
    HEADS,
    P: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    SKIP: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Kernel of the gradients of x; one program computes one chunk of HEADS heads of one group. Tiles have rows s and columns t
    >= s, so that nothing is transposed.

    With u_s = dt_s x_s, D the gradient of the leaving state, P_st = b_s . c_t and L_st = 2^(log_t - log_s):
    du_s = sum_{t >= s} P_st L_st dy_t + leave_s D^T b_s, and dP_st = L_st <u_s, dy_t> summed over heads.
    """
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c = i // C, i % C
    share = H // G
    splits = tl.cdiv(share, HEADS)
    i_g, split = tl.program_id(1) // splits, tl.program_id(1) % splits
    o = tl.arange(0, S)
    start = i_c * S
    row, t = i_b * T, start + o
    b = load_rows(p_b, row, i_g, t, T, G, N, BN, INTERPRET)
    c = load_rows(p_c, row, i_g, t, T, G, N, BN, INTERPRET)
    products = tl.dot(b, tl.trans(c), input_precision=PRECISION)
    ids = 0
    if DOCUMENTS:
        ids = load_ids(p_ids, i_b, t, T)
    dproducts = tl.zeros([S, S], tl.float32)
    first = i_g * share + split * HEADS
    for i_h in tl.range(first, tl.minimum(first + HEADS, i_g * share + share), num_stages=STAGES):
        vectors = (i_b * H + i_h) * C * S + start
        # All loads come before all products: programs wait for memory most of the time.
        dstate = load_state(p_dstates, (i_b * C + i_c) * H + i_h, N, P, BN, BP, INTERPRET)
        dy = load_rows(p_dy, row, i_h, t, T, H, P, BP, INTERPRET)
        x = load_rows(p_x, row, i_h, t, T, H, P, BP, INTERPRET)
        steps, log = tl.load((p_steps + vectors) + o), tl.load((p_log + vectors) + o)
        if DOCUMENTS:
            decay = decays_between(log[None, :], log[:, None], o, ids[None, :], ids[:, None], True)
        else:
            decay = decays_between(log[None, :], log[:, None], o, 0, 0, False)
        read = tl.dot(x, tl.trans(dy), input_precision=PRECISION)  # <x_s, dy_t>
        same = o[:, None] == o[None, :]
        if SKIP:
            tl.store((p_dskips + vectors) + o, tl.sum(tl.where(same, read, 0.0), 1))
        weight = decay * products
        read *= steps[:, None]
        dproducts += read * decay
        # What token t reads from s decays over the tokens after s up to t; a token's read of itself does not decay.
        pair = tl.where(same, 0.0, read * weight)
        tl.store((p_earlier + vectors) + o, tl.sum(pair, 1))
        tl.store((p_later + vectors) + o, tl.sum(pair, 0))
        du = tl.dot(b, dstate, input_precision=PRECISION) * tl.load((p_leave + vectors) + o)[:, None]
        du = tl.dot(to_dtype_of(weight, p_x, INTERPRET), dy, du, input_precision=PRECISION)
        tl.store((p_dsteps + vectors) + o, tl.sum(du * x.to(tl.float32), 1))
        dx = du * steps[:, None]
        if SKIP:
            dx += tl.load(p_d + i_h) * dy.to(tl.float32)
        store_rows(p_dx, dx, row, i_h, t, T, H, P, BP)
    i_split = split * (tl.num_programs(0) // C) + i_b
    p_dproducts += ((i_split * C + i_c) * G + i_g) * (S * S)
    tl.store(p_dproducts + o[:, None] * S + o[None, :], dproducts)
