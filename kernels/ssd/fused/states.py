"""The state that each chunk enters with, and the gradient of the state that each chunk leaves (arXiv 2405.21060 §6, steps 2, 3).

Both are one walk over the chunks of a row with the state in registers: forward it adds `b_s (dt_s x_s)^T`, backward
`c_t dy_t^T`. A long row is cut into segments that are walked side by side: once to sum up each segment, and once more
from the state that each segment enters with (`pass_segments`).
"""

import triton
import triton.language as tl

from .tiles import load_columns, load_rows, to_dtype_of


@triton.jit(do_not_specialize=["T", "C", "H", "G", "SEGMENTS"])
def walk_states(
    p_x,  # [B, T, H, P]: x; REVERSE: dy
    p_b,  # [B, T, G, N]: b; REVERSE: c
    p_steps,  # [B, H, C * S] fp32, and see decays.py for the next three
    p_enter,  # read if REVERSE
    p_leave,  # read unless REVERSE
    p_keep,  # [B, H, C] fp32
    p_initial,  # [B, H, P, N] fp32, FROM "initial" only: what the walk begins with; REVERSE: the final state's gradient
    p_ends,  # [B, H, SEGMENTS, N, P] fp32: what each segment begins with (FROM "segments"); out unless STORE, its sum
    p_keeps,  # [B, H, SEGMENTS] fp32, out unless STORE: how much of its entering state a segment keeps
    p_final,  # [B, H, P, N] fp32, out, STORE only: the state after the last chunk; REVERSE: the initial state's gradient
    p_states,  # [B, C, H, N, P], out, STORE only: of each chunk the entering state; REVERSE: the leaving one's gradient
    T,
    C,
    H,
    G,
    SEGMENTS,
    P: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    FROM: tl.constexpr,  # "zero", "initial" or "segments"
    STORE: tl.constexpr,
    REVERSE: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Kernel that walks over the chunks of a segment; one program holds BN rows of the state of one head."""
    i = tl.program_id(0).to(tl.int64)
    i_s, i_h, i_b = i % SEGMENTS, (i // SEGMENTS) % H, i // (SEGMENTS * H)
    i_g = i_h // (H // G)
    o, n, p = tl.arange(0, S), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BP)
    inside = (n < N)[:, None] & (p < P)[None, :]
    matrix = n[:, None] * P + p[None, :]
    length = tl.cdiv(C, SEGMENTS)
    first, last = i_s * length, tl.minimum(i_s * length + length, C)
    vectors = (i_b * H + i_h) * C * S
    state = tl.zeros([BN, BP], tl.float32)
    keeps = 1.0
    transposed = (i_b * H + i_h) * (N * P) + p[None, :] * N + n[:, None]
    if FROM == "initial":
        state = tl.load(p_initial + transposed, mask=inside, other=0.0)
    if FROM == "segments":
        state = tl.load((p_ends + i * (N * P)) + matrix, mask=inside, other=0.0)
    for i_step in tl.range(first, last, num_stages=STAGES):
        i_c = first + last - 1 - i_step if REVERSE else i_step
        keep = tl.load(p_keep + (i_b * H + i_h) * C + i_c)
        if STORE:
            i_state = (i_b * C + i_c) * H + i_h
            tl.store((p_states + i_state * (N * P)) + matrix, state.to(p_states.dtype.element_ty), mask=inside)
        state *= keep
        keeps *= keep
        if REVERSE:
            weight = tl.load((p_enter + vectors + i_c * S) + o)
        else:
            weight = tl.load((p_steps + vectors + i_c * S) + o) * tl.load((p_leave + vectors + i_c * S) + o)
        row = i_b * T + i_c * S
        x = load_rows(p_x + row * H * P, 0, i_h, o, T - i_c * S, H, P, BP, INTERPRET)
        b = load_columns(p_b + row * G * N, 0, i_g, o, n, T - i_c * S, G, N, INTERPRET)
        weighted = to_dtype_of(x.to(tl.float32) * weight[:, None], p_x, INTERPRET)
        state = tl.dot(b, weighted, state, input_precision=PRECISION)
    if STORE:
        if i_s == (0 if REVERSE else SEGMENTS - 1):
            tl.store(p_final + transposed, state, mask=inside)
    else:
        tl.store((p_ends + i * (N * P)) + matrix, state, mask=inside)
        tl.store(p_keeps + i, keeps)


@triton.jit(do_not_specialize=["SEGMENTS"])
def pass_segments(
    p_ends,  # [B, H, SEGMENTS, N, P] fp32: in, each segment's sum; out, what it begins with
    p_keeps,  # [B, H, SEGMENTS] fp32
    p_initial,  # [B, H, P, N] fp32, INITIAL only
    SEGMENTS,
    P: tl.constexpr,
    N: tl.constexpr,
    BE: tl.constexpr,
    INITIAL: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Kernel that passes states through the segments of a row; one program holds BE numbers of the state of one head."""
    i = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    inside = e < N * P
    state = tl.zeros([BE], tl.float32)
    if INITIAL:
        state = tl.load(p_initial + i * (N * P) + (e % P) * N + e // P, mask=inside, other=0.0)
    for i_step in range(SEGMENTS):
        i_s = i * SEGMENTS + (SEGMENTS - 1 - i_step if REVERSE else i_step)
        p = p_ends + i_s * (N * P) + e
        total = tl.load(p, mask=inside, other=0.0)
        tl.store(p, state, mask=inside)
        state = state * tl.load(p_keeps + i_s) + total
