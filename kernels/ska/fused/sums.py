"""The state that each chunk enters with: sums over the chunks before it.

Sequences are cut into segments of a few chunks. One pass adds up each segment, a scan over segments follows, and a
second pass walks each segment again from the state it enters with: reading keys and values twice costs less than
writing each chunk's sums and reading them back.
"""

import triton
import triton.language as tl

from .tiles import load_ids, load_matrix, load_previous_keys, load_rows, mul, place, split, store_matrix, transpose


@triton.jit(do_not_specialize=["T", "N", "H"])
def walk_segments(
    p_k,  # [B, T, H, R]
    p_v,  # [B, T, H, P]
    p_last,  # [B, H, R] fp32
    p_ids,  # [B, T] int32
    p_segments,  # [B, segments, H, 2R + P, R] fp32: STORE in, what each segment enters with; else out, its sums
    p_states,  # [B, N, H, 2R + P, R] fp32, out, STORE only: what each chunk enters with
    T,
    N,
    H,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    SEGMENT: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
    STORE: tl.constexpr,
    LAG: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Sums of z z^T, z z_prev^T and v z^T over SEGMENT chunks; where there is a border, over the last document only."""
    i_b, i_s, i_h, i = place(tl.program_id(0), tl.cdiv(N, SEGMENT), H)
    p_segments += i * ((2 * R + P) * R)
    b_gram = tl.zeros([BR, BR], tl.float32)
    b_transition = tl.zeros([BR, BR], tl.float32)
    b_values = tl.zeros([BP, BR], tl.float32)
    if STORE:
        b_gram = load_matrix(p_segments, R, R, BR, BR)
        b_transition = load_matrix(p_segments + R * R, R, R, BR, BR)
        b_values = load_matrix(p_segments + 2 * R * R, P, R, BP, BR)
    for i_c in range(i_s * SEGMENT, tl.minimum(i_s * SEGMENT + SEGMENT, N)):
        if STORE:
            p_state = p_states + ((i_b * N + i_c) * H + i_h) * ((2 * R + P) * R)
            store_matrix(p_state, b_gram, R, R, BR, BR)
            store_matrix(p_state + R * R, b_transition, R, R, BR, BR)
            store_matrix(p_state + 2 * R * R, b_values, P, R, BP, BR)
        if DOCUMENTS:
            document = load_ids(p_ids, i_b, i_c * S + S - 1, T)
            keep = tl.where(document == load_ids(p_ids, i_b, i_c * S - 1, T), 1.0, 0.0)
            b_gram *= keep
            b_transition *= keep
            b_values *= keep
        for i_t in tl.static_range(S // BT):  # pyright: ignore[reportGeneralTypeIssues]
            t = i_c * S + i_t * BT + tl.arange(0, BT)
            z = load_rows(p_k, i_b, i_h, t, T, H, R, BR)
            z_prev = load_previous_keys(p_k, p_last, p_ids, i_b, i_h, t, T, H, R, BR, DOCUMENTS)
            v = load_rows(p_v, i_b, i_h, t, T, H, P, BP)
            z_kept = z
            if DOCUMENTS:
                tail = load_ids(p_ids, i_b, t, T) == document
                z_kept = tl.where(tail[:, None], z, 0.0)
                v = tl.where(tail[:, None], v, 0.0)
            z_kept = transpose(split(z_kept, INPUT_PARTS, INTERPRET))
            v = transpose(split(v, INPUT_PARTS, INTERPRET))
            z = split(z, INPUT_PARTS, INTERPRET)
            z_prev = split(z_prev, INPUT_PARTS, INTERPRET)
            b_gram += mul(z_kept, z, 2)
            b_transition += mul(z_kept, z_prev, 2)
            b_values += mul(v, z_prev if LAG else z, 2)
    if not STORE:
        store_matrix(p_segments, b_gram, R, R, BR, BR)
        store_matrix(p_segments + R * R, b_transition, R, R, BR, BR)
        store_matrix(p_segments + 2 * R * R, b_values, P, R, BP, BR)


@triton.jit(do_not_specialize=["T", "N", "H", "E"])
def scan_chunks(
    p_x,  # [B, N, H, E] fp32, in and out
    p_ends,  # [B, H, E] fp32: in, what the scan starts from; out, what it ends with
    p_ids,  # [B, T] int32
    T,
    N,
    H,
    E,
    S: tl.constexpr,
    BE: tl.constexpr,
    AHEAD: tl.constexpr,
    REVERSE: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """Replace each chunk's sums by the state before it: `state <- state * (no border in the chunk) + sums`.

    REVERSE walks from the last chunk to the first: the gradients of entering states, as each chunk's reads give them, become
    gradients of the states that chunks leave.
    """
    i_bh = tl.program_id(0).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    inside = e < E
    b_state = tl.load(p_ends + i_bh * E + e, mask=inside, other=0.0)
    step = H * E
    if REVERSE:
        step = -H * E
    p = p_x + ((i_b * N + (N - 1 if REVERSE else 0)) * H + i_h) * E + e
    # Many loads are in flight at once, since the sequential walk over chunks is bound by latency.
    for i in range(0, N, AHEAD):
        xs = ()
        for j in tl.static_range(AHEAD):  # pyright: ignore[reportGeneralTypeIssues]
            xs = xs + (tl.load(p + j * step, mask=inside & (i + j < N), other=0.0),)
        for j in tl.static_range(AHEAD):  # pyright: ignore[reportGeneralTypeIssues]
            tl.store(p + j * step, b_state, mask=inside & (i + j < N))
            if DOCUMENTS:
                i_c = N - 1 - i - j if REVERSE else i + j
                border = load_ids(p_ids, i_b, i_c * S + S - 1, T) != load_ids(p_ids, i_b, i_c * S - 1, T)
                # Steps beyond the end of the walk must not change the sums.
                b_state = tl.where(border & (i + j < N), 0.0, b_state)
            b_state += xs[j]
        p += AHEAD * step
    tl.store(p_ends + i_bh * E + e, b_state, mask=inside)
