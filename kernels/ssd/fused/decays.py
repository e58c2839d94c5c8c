"""Cumulative decays of each chunk (arXiv 2405.21060 §6, step 0), by which all other SSD kernels weight tokens."""

import triton
import triton.language as tl

from .tiles import load_ids

LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["T", "C", "H"])
def chunk_decays(
    p_dt,  # [B, T, H] fp32
    p_a,  # [H] fp32
    p_ids,  # [B, T] int32, DOCUMENTS only
    p_steps,  # [B, H, C * S] fp32, out: dt, 0 behind the row's end
    p_log,  # likewise: log2 of the decay from the chunk's entry up to and with the token
    p_enter,  # likewise: how much of the chunk's entering state is left at the token; 0 in a later document
    p_leave,  # likewise: how much of the token is left at the chunk's end; 0 in an earlier document
    p_keep,  # [B, H, C] fp32, out: how much of the entering state is left at the chunk's end
    T,
    C,
    H,
    S: tl.constexpr,
    BH: tl.constexpr,
    LOG2: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """Kernel of the cumulative decays; one program computes one chunk of BH heads."""
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c = i // C, i % C
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    t = i_c * S + tl.arange(0, S)
    inside = h < H
    dt = tl.load(p_dt + (i_b * T + t)[:, None] * H + h[None, :], mask=(t < T)[:, None] & inside[None, :], other=0.0)
    a = tl.load(p_a + h, mask=inside, other=0.0)
    rate = dt * (a * LOG2)[None, :]
    log = tl.cumsum(rate, 0)
    last = tl.sum(rate, 0)
    enter, leave, keep = tl.exp2(log), tl.exp2(last[None, :] - log), tl.exp2(last)
    if DOCUMENTS:
        ids = load_ids(p_ids, i_b, t, T)
        first, final = load_ids(p_ids, i_b, i_c * S - 1, T), load_ids(p_ids, i_b, i_c * S + S - 1, T)
        enter = tl.where((ids == first)[:, None], enter, 0.0)
        leave = tl.where((ids == final)[:, None], leave, 0.0)
        keep = tl.where(first == final, keep, 0.0)
    o = (i_b * H + h)[None, :] * (C * S) + t[:, None]
    mask = (t >= 0)[:, None] & inside[None, :]
    tl.store(p_steps + o, dt, mask=mask)
    tl.store(p_log + o, log, mask=mask)
    tl.store(p_enter + o, enter, mask=mask)
    tl.store(p_leave + o, leave, mask=mask)
    tl.store(p_keep + (i_b * H + h) * C + i_c, keep, mask=inside)
