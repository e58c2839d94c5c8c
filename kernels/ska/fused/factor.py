"""Small Cholesky factorisations, one warp each, 16 rows at a time.

`R R^T = A` itself is not wanted: the readers need `W = R^-1 B`, or the inverse `W^T W`. Row panels of 16 are worked from
top to bottom, and a panel loads what earlier ones left (left-looking), so that a warp holds little, needs no other warp,
and many matrices are under way on every multiprocessor. The published implementations spend their time in cuSOLVER here.
"""

import triton
import triton.language as tl

# A chunk-causal read refines its solves where G may have lost digits: the largest element of G times that of G^-1, which
# is at most the condition number, and far below it for a few unit keys of many numbers (one of 128: 71 for 1,001). fp32 solves
# of better matrices are good to about 1e-5 as they are.
REFINE_ABOVE_CONDITION = tl.constexpr(16.0)


@triton.jit
def dot(a, b):
    # Three tf32 products keep what one would lose: 1e-6 against 5e-4, on what the ridge conditions.
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def inverse_factor_16(d):
    """R^-1 of a symmetric positive definite `[16, 16]` tile R R^T, by eliminating `[d | I]` row by row."""
    i = tl.arange(0, 16)
    e = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for k in tl.static_range(16):
        pivot_row = (i == k)[:, None]
        pivot_column = (i == k)[None, :]
        # Four reductions that do not wait for each other.
        d_row = tl.sum(tl.where(pivot_row, d, 0.0), 0)
        e_row = tl.sum(tl.where(pivot_row, e, 0.0), 0)
        d_column = tl.sum(tl.where(pivot_column, d, 0.0), 1)
        pivot = tl.sum(tl.where(pivot_row & pivot_column, d, 0.0))
        inverse_root = tl.rsqrt(pivot)
        below = tl.where(i > k, d_column / pivot, 0.0)[:, None]
        d -= below * d_row[None, :]
        e = tl.where(pivot_row, (e_row * inverse_root)[None, :], e - below * e_row[None, :])
    return e


@triton.jit
def factor(
    p_states,  # [n, 2R + P, R] fp32: GRAM only
    p_a,  # [n, A, A] fp32, A a multiple of 16: in (unless GRAM), and overwritten
    p_w,  # [n, W_ROWS, R] fp32: B in and W out; GRAM: G^-1 out
    p_cold,  # [n] int32, out, GRAM only: G is so badly conditioned that solves need a step of refinement
    ridge,
    A: tl.constexpr,
    W_ROWS: tl.constexpr,
    R: tl.constexpr,
    E: tl.constexpr,
    BA: tl.constexpr,
    BR: tl.constexpr,
    GRAM: tl.constexpr,
):
    """W = R^-1 B with R R^T = A (only A's upper triangle is read). GRAM: A = G = ridge I + gram, B = I, and the result
    is G^-1 = W^T W."""
    i_n = tl.program_id(0).to(tl.int64)
    p_a += i_n * A * A
    p_w += i_n * W_ROWS * R
    o = tl.arange(0, 16)
    n = tl.arange(0, BA)
    r = tl.arange(0, BR)
    largest = 0.0
    for i_p in range(0, A // 16):
        rows = i_p * 16 + o
        right = (n >= i_p * 16) & (n < A)
        if GRAM:
            # Padding is an identity, which factors to itself.
            p_g = p_states + i_n * E
            unit_d = tl.where(o[:, None] == o[None, :], 1.0, 0.0)
            unit_a = tl.where(rows[:, None] == n[None, :], 1.0, 0.0)
            shift_d = tl.where(rows < R, ridge, 1.0)[:, None] * unit_d
            shift_a = tl.where(rows < R, ridge, 1.0)[:, None] * unit_a
            d = shift_d + tl.load(
                p_g + rows[:, None] * R + rows[None, :], mask=(rows < R)[:, None] & (rows < R)[None, :], other=0.0
            )
            a = shift_a + tl.load(
                p_g + rows[:, None] * R + n[None, :], mask=(rows < R)[:, None] & (right & (n < R))[None, :], other=0.0
            )
            w = tl.where(rows[:, None] == r[None, :], 1.0, 0.0)
            largest = tl.maximum(largest, tl.max(tl.max(unit_d * d, 1), 0))
        else:
            d = tl.load(p_a + rows[:, None] * A + rows[None, :])
            a = tl.load(p_a + rows[:, None] * A + n[None, :], mask=right[None, :], other=0.0)
            w = tl.load(p_w + rows[:, None] * R + r[None, :], mask=(r < R)[None, :], other=0.0)
        for j in range(0, i_p):
            above = j * 16 + o
            left = tl.load(p_a + above[None, :] * A + rows[:, None])
            a_above = tl.load(p_a + above[:, None] * A + n[None, :], mask=right[None, :], other=0.0)
            w_above = tl.load(p_w + above[:, None] * R + r[None, :], mask=(r < R)[None, :], other=0.0)
            d -= dot(left, tl.trans(left))
            a -= dot(left, a_above)
            w -= dot(left, w_above)
        inverse = inverse_factor_16(d)
        a = dot(inverse, a)
        w = dot(inverse, w)
        tl.store(p_a + rows[:, None] * A + n[None, :], a, mask=right[None, :])
        tl.store(p_w + rows[:, None] * R + r[None, :], w, mask=(rows < W_ROWS)[:, None] & (r < R)[None, :])
        # The next panel reads what other lanes stored.
        tl.debug_barrier()
    if GRAM:
        largest_inverse = 0.0
        for i_p in range(0, A // 16):
            rows = i_p * 16 + o
            inverse = tl.zeros([16, BR], tl.float32)
            for j in range(i_p, A // 16):
                below = j * 16 + o
                left = tl.load(
                    p_w + below[None, :] * R + rows[:, None], mask=(below < R)[None, :] & (rows < R)[:, None], other=0.0
                )
                w = tl.load(
                    p_w + below[:, None] * R + r[None, :], mask=(below < R)[:, None] & (r < R)[None, :], other=0.0
                )
                inverse += dot(left, w)
            diagonal = tl.where(rows[:, None] == r[None, :], inverse, 0.0)
            largest_inverse = tl.maximum(largest_inverse, tl.max(tl.max(diagonal, 1), 0))
            # In place: the panels that follow read none of these rows.
            tl.debug_barrier()
            tl.store(p_w + rows[:, None] * R + r[None, :], inverse, mask=(rows < R)[:, None] & (r < R)[None, :])
        tl.store(p_cold + i_n, (largest * largest_inverse > REFINE_ABOVE_CONDITION).to(tl.int32))
