"""Gradients of the values x inside each chunk, and what they give for `C B^T` and the decays (docs/kernels.md, SSD)."""

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
    p_later,  # likewise: <dy_t, y_t> of what t reads from earlier tokens of its chunk
    p_earlier,  # likewise: the same of what later tokens of the chunk read from s
    p_dskips,  # likewise: <dy_s, x_s>, SKIP only
    p_dproducts,  # [splits, B, C, G, S, S] fp32, out: gradient of b_s . c_t (row s, column t >= s), of HEADS heads
    T,
    C,
    H,
    G,
    HEADS,
    P: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    SKIP: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One program: one chunk of HEADS heads of one group. Tiles have rows s and columns t >= s, so that nothing is transposed.

    With u_s = dt_s x_s and D the gradient of the leaving state:
    du_s = sum_{t >= s} (b_s . c_t) 2^(log_t - log_s) dy_t + leave_s D^T b_s.
    """
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c = i // C, i % C
    share = H // G
    splits = tl.cdiv(share, HEADS)
    i_g, split = tl.program_id(1) // splits, tl.program_id(1) % splits
    TILES: tl.constexpr = S // BT
    bs, products, dproducts, ids = (), (), (), ()
    for i_s in tl.static_range(TILES):
        s = i_c * S + i_s * BT + tl.arange(0, BT)
        b = load_rows(p_b, i_b, i_g, s, T, G, N, BN, INTERPRET)
        bs = bs + (b,)
        if DOCUMENTS:
            ids = ids + (load_ids(p_ids, i_b, s, T),)
        for i_t in tl.static_range(TILES):
            if i_t < i_s:  # holds the place, so that tile (i_s, i_t) is number i_s * TILES + i_t
                products = products + (0.0,)
                dproducts = dproducts + (0.0,)
            else:
                t = i_c * S + i_t * BT + tl.arange(0, BT)
                c = load_rows(p_c, i_b, i_g, t, T, G, N, BN, INTERPRET)
                product = tl.dot(b, tl.trans(c), input_precision=PRECISION)
                products = products + (to_dtype_of(product, p_x, INTERPRET),)
                dproducts = dproducts + (tl.zeros([BT, BT], tl.float32),)
    first = i_g * share + split * HEADS
    for i_h in tl.range(first, tl.minimum(first + HEADS, i_g * share + share), num_stages=STAGES):
        dstate = load_state(p_dstates, (i_b * C + i_c) * H + i_h, N, P, BN, BP, INTERPRET)
        vectors = (i_b * H + i_h) * C * S + i_c * S
        dys, laters, new_dproducts = (), (), ()
        for i_t in tl.static_range(TILES):
            t = i_c * S + i_t * BT + tl.arange(0, BT)
            dys = dys + (load_rows(p_dy, i_b, i_h, t, T, H, P, BP, INTERPRET),)
            laters = laters + (tl.zeros([BT], tl.float32),)
        for i_s in tl.static_range(TILES):
            o = i_s * BT + tl.arange(0, BT)
            s = i_c * S + o
            x = load_rows(p_x, i_b, i_h, s, T, H, P, BP, INTERPRET)
            steps, log = tl.load(p_steps + vectors + o), tl.load(p_log + vectors + o)
            earlier = tl.zeros([BT], tl.float32)
            new_laters, weights = (), ()
            for i_t in tl.static_range(TILES):
                if i_t < i_s:
                    new_laters = new_laters + (laters[i_t],)
                    new_dproducts = new_dproducts + (0.0,)
                    weights = weights + (0.0,)
                else:
                    log_t = tl.load(p_log + vectors + i_t * BT + tl.arange(0, BT))
                    if DOCUMENTS:
                        decay = decays_between(
                            log_t[None, :], log[:, None], ids[i_t][None, :], ids[i_s][:, None], i_t == i_s, True
                        )
                    else:
                        decay = decays_between(log_t[None, :], log[:, None], 0, 0, i_t == i_s, False)
                    read = tl.dot(x, tl.trans(dys[i_t]), input_precision=PRECISION)  # <x_s, dy_t>
                    weight = decay * products[i_s * TILES + i_t].to(tl.float32)
                    weights = weights + (to_dtype_of(weight, p_x, INTERPRET),)
                    read *= steps[:, None]
                    pair = read * weight
                    if i_t == i_s:
                        diagonal = tl.arange(0, BT)[:, None] == tl.arange(0, BT)[None, :]
                        pair = tl.where(diagonal, 0.0, pair)
                    earlier += tl.sum(pair, 1)
                    new_laters = new_laters + (laters[i_t] + tl.sum(pair, 0),)
                    new_dproducts = new_dproducts + (dproducts[i_s * TILES + i_t] + read * decay,)
            du = tl.dot(bs[i_s], dstate, input_precision=PRECISION) * tl.load(p_leave + vectors + o)[:, None]
            for i_t in tl.static_range(i_s, TILES):
                du = tl.dot(weights[i_t], dys[i_t], du, input_precision=PRECISION)
            laters = new_laters
            tl.store(p_earlier + vectors + o, earlier)
            x = x.to(tl.float32)
            tl.store(p_dsteps + vectors + o, tl.sum(du * x, 1))
            dx = du * steps[:, None]
            if SKIP:
                dy = dys[i_s].to(tl.float32)
                tl.store(p_dskips + vectors + o, tl.sum(dy * x, 1))
                dx += tl.load(p_d + i_h) * dy
            store_rows(p_dx, dx, i_b, i_h, s, T, H, P, BP)
        dproducts = new_dproducts
        for i_t in tl.static_range(TILES):
            tl.store(p_later + vectors + i_t * BT + tl.arange(0, BT), laters[i_t])
    p_dproducts += (((split * (tl.num_programs(0) // C) + i_b) * C + i_c) * G + i_g) * (S * S)
    for i_s in tl.static_range(TILES):
        for i_t in tl.static_range(i_s, TILES):
            o = (i_s * BT + tl.arange(0, BT))[:, None] * S + (i_t * BT + tl.arange(0, BT))[None, :]
            tl.store(p_dproducts + o, dproducts[i_s * TILES + i_t])
