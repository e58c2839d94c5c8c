"""Gradients of the step sizes, of a and of d from per-token sums that the other backward kernels wrote (docs/design/kernels.md,
SSD)."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "C", "H"])
def decay_backward(
    p_a,  # [H] fp32
    p_steps,  # [B, H, C * S] fp32
    p_dsteps,  # [B, H, C * S] fp32, and see values_backward.py and keys_backward.py for the next five
    p_dskips,  # SKIP only
    p_later,
    p_earlier,
    p_kept,
    p_old,
    p_inner,  # [B, H, C] fp32, see keys_backward.py
    p_ddt,  # [B, T, H] fp32, out
    p_da,  # [B, C, H] fp32, out: of each chunk
    p_dd,  # [B, C, H] fp32, out: of each chunk, SKIP only
    T,
    C,
    H,
    S: tl.constexpr,
    BH: tl.constexpr,
    SKIP: tl.constexpr,
):
    """Kernel of the gradients of step sizes, a and d; one program computes one chunk of BH heads.

    The decay of token k, exp(dt_k a), stands in all that passes k: what a token t >= k reads from tokens s < k of the
    chunk or from the entering state, and what the chunk leaves of tokens s < k or of the entering state. `later` and
    `earlier` are sums over the same numbers, one for each pair of tokens: those of pairs on one side of k cancel exactly.
    """
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c = i // C, i % C
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    t = tl.arange(0, S)
    inside = h < H
    o = (i_b * H + h)[None, :] * (C * S) + (i_c * S + t)[:, None]
    mask = (t >= 0)[:, None] & inside[None, :]
    steps, a = tl.load(p_steps + o, mask=mask, other=0.0), tl.load(p_a + h, mask=inside, other=0.0)
    dsteps = tl.load(p_dsteps + o, mask=mask, other=0.0)
    old, kept = tl.load(p_old + o, mask=mask, other=0.0), tl.load(p_kept + o, mask=mask, other=0.0)
    later, earlier = tl.load(p_later + o, mask=mask, other=0.0), tl.load(p_earlier + o, mask=mask, other=0.0)
    inner = tl.load(p_inner + (i_b * H + h) * C + i_c, mask=inside, other=0.0)
    read = later - earlier + old
    drate = tl.cumsum(read, 0, reverse=True) + (tl.cumsum(kept, 0) - kept) + inner[None, :]
    ddt = dsteps + drate * a[None, :]
    row = i_c * S + t
    tl.store(p_ddt + (i_b * T + row)[:, None] * H + h[None, :], ddt, mask=(row < T)[:, None] & inside[None, :])
    tl.store(p_da + (i_b * C + i_c) * H + h, tl.sum(drate * steps, 0), mask=inside)
    if SKIP:
        dskips = tl.load(p_dskips + o, mask=mask, other=0.0)
        tl.store(p_dd + (i_b * C + i_c) * H + h, tl.sum(dskips, 0), mask=inside)
