"""The output of each chunk from its own tokens and its entering state (arXiv 2405.21060 §6, steps 1 and 4)."""

import triton
import triton.language as tl

from .tiles import decays_between, load_ids, load_rows, load_state, store_rows, to_dtype_of


@triton.jit(do_not_specialize=["T", "C", "H", "G", "HEADS"])
def chunk_outputs(
    p_x,  # [B, T, H, P]
    p_b,  # [B, T, G, N]
    p_c,  # [B, T, G, N]
    p_d,  # [H] fp32, SKIP only
    p_states,  # [B, C, H, N, P]: the state that each chunk enters with
    p_steps,  # [B, H, C * S] fp32, and see decays.py for the next two
    p_log,
    p_enter,
    p_ids,  # [B, T] int32, DOCUMENTS only
    p_y,  # [B, T, H, P], out
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
    """Kernel of the outputs; one program computes one chunk of HEADS heads of one group. `C B^T` is computed once and serves all
    of them:

    y_t = 2^log_t H c_t + sum_{s <= t} (c_t . b_s) 2^(log_t - log_s) dt_s x_s + d x_t, with H the entering state.
    """
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c = i // C, i % C
    start = i_c * S
    share = H // G
    splits = tl.cdiv(share, HEADS)
    i_g, split = tl.program_id(1) // splits, tl.program_id(1) % splits
    o = tl.arange(0, S)
    row, t = i_b * T, start + o
    b = load_rows(p_b, row, i_g, t, T, G, N, BN, INTERPRET)
    c = load_rows(p_c, row, i_g, t, T, G, N, BN, INTERPRET)
    products = to_dtype_of(tl.dot(c, tl.trans(b), input_precision=PRECISION), p_x, INTERPRET)
    ids = 0
    if DOCUMENTS:
        ids = load_ids(p_ids, i_b, t, T)
    first = i_g * share + split * HEADS
    for i_h in tl.range(first, tl.minimum(first + HEADS, i_g * share + share), num_stages=STAGES):
        vectors = (i_b * H + i_h) * C * S + start
        x = load_rows(p_x, row, i_h, t, T, H, P, BP, INTERPRET)
        state = load_state(p_states, (i_b * C + i_c) * H + i_h, N, P, BN, BP, INTERPRET)
        log, steps = tl.load((p_log + vectors) + o), tl.load((p_steps + vectors) + o)
        if DOCUMENTS:
            weight = decays_between(log[:, None], log[None, :], o, ids[:, None], ids[None, :], True)
        else:
            weight = decays_between(log[:, None], log[None, :], o, 0, 0, False)
        weight *= products.to(tl.float32) * steps[None, :]
        y = tl.dot(c, state, input_precision=PRECISION) * tl.load((p_enter + vectors) + o)[:, None]
        y = tl.dot(to_dtype_of(weight, p_x, INTERPRET), x, y, input_precision=PRECISION)
        if SKIP:
            y += tl.load(p_d + i_h) * x.to(tl.float32)
        store_rows(p_y, y, row, i_h, t, T, H, P, BP)
