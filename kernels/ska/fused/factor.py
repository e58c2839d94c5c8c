"""Cholesky factorisations of many small matrices, each by one warp, 16 rows at a time.

`R R^T = A` itself is not wanted: the readers need `W = R^-1 B`, or the inverse `W^T W`. Row panels of 16 are worked from
top to bottom, and a panel loads what earlier ones left (left-looking), so that a warp holds little, needs no other warp,
and many matrices are under way on every multiprocessor. The published implementations spend their time in cuSOLVER here.
"""

import triton
import triton.language as tl

from ...launch import device_function
from ..cholesky import SHIFTS, SLACK

# A chunk-causal read refines its solves where G may have lost digits: the largest element of G times that of G^-1, which
# is at most the condition number, and far below it for a few unit keys of many numbers (one of 128: 71 for 1,001). fp32 solves
# of better matrices are good to about 1e-5 as they are.
REFINE_ABOVE_CONDITION = tl.constexpr(16.0)

FIRST_SHIFT, SHIFT_GROWTH, TRIES = (
    tl.constexpr(SHIFTS[0]),
    tl.constexpr(SHIFTS[1] / SHIFTS[0]),
    tl.constexpr(len(SHIFTS)),
)
LARGEST_INVERSE = tl.constexpr(SLACK)  # times the shift that no eigenvalue is below


@device_function
def dot(a, b):
    """Matrix product of two fp32 tiles by tf32 tensor cores, at nearly fp32 accuracy."""
    # Three tf32 products instead of one, for numbers conditioned by the ridge: relative errors of 1e-6 against 5e-4.
    return tl.dot(a, b, input_precision="tf32x3")


@device_function
def inverse_factor_16(d):
    """R^-1 of a symmetric positive definite `[16, 16]` tile R R^T, by eliminating `[d | I]` row by row."""
    i = tl.arange(0, 16)
    e = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for k in tl.static_range(16):  # pyright: ignore[reportGeneralTypeIssues]
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


@device_function
def eliminate_panel(
    p_a, p_w, d, a, w, i_p, A: tl.constexpr, W_ROWS: tl.constexpr, R: tl.constexpr, BA: tl.constexpr, BR: tl.constexpr
):
    """Compute and store the row panel i_p of R^T and of W, from that of A (`a`, its diagonal tile `d`), that of B (`w`) and the
    panels above."""
    o = tl.arange(0, 16)
    n = tl.arange(0, BA)
    r = tl.arange(0, BR)
    rows = i_p * 16 + o
    right = (n >= i_p * 16) & (n < A)
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


@triton.jit
def factor(
    p_a,  # [n, A, A] fp32, A a multiple of 16: only the upper triangle is read; overwritten
    p_w,  # [n, A, R] fp32: B in and W out
    A: tl.constexpr,
    R: tl.constexpr,
    BA: tl.constexpr,
    BR: tl.constexpr,
):
    """Compute W = R^-1 B with R R^T = A."""
    i_n = tl.program_id(0).to(tl.int64)
    p_a += i_n * A * A
    p_w += i_n * A * R
    o = tl.arange(0, 16)
    n = tl.arange(0, BA)
    r = tl.arange(0, BR)
    for i_p in range(0, A // 16):
        rows = i_p * 16 + o
        d = tl.load(p_a + rows[:, None] * A + rows[None, :])
        a = tl.load(p_a + rows[:, None] * A + n[None, :], mask=((n >= i_p * 16) & (n < A))[None, :], other=0.0)
        w = tl.load(p_w + rows[:, None] * R + r[None, :], mask=(r < R)[None, :], other=0.0)
        eliminate_panel(p_a, p_w, d, a, w, i_p, A, A, R, BA, BR)


@triton.jit
def invert(
    p_states,  # [n, 2R + P, R] fp32: what is added to a gram is added in place, for whoever reads it with G^-1
    p_a,  # [n, A, A] fp32, scratch: R rounded up to a multiple of 16
    p_inverse,  # [n, R, R] fp32, out
    p_cold,  # [n] int32, out: G is so badly conditioned that solves need a step of refinement
    ridge,
    A: tl.constexpr,
    R: tl.constexpr,
    E: tl.constexpr,
    BA: tl.constexpr,
    BR: tl.constexpr,
):
    """Invert G = ridge I + gram; where rounding left it indefinite, with the first of `SHIFTS` that makes it definite
    (kernels/ska/cholesky.py)."""
    i_n = tl.program_id(0).to(tl.int64)
    p_states += i_n * E
    p_a += i_n * A * A
    p_inverse += i_n * R * R
    o = tl.arange(0, 16)
    n = tl.arange(0, BA)
    r = tl.arange(0, BR)
    on_diagonal = o[:, None] == o[None, :]
    added, condition = ridge * 0.0, ridge * 0.0
    share, tries = added + FIRST_SHIFT, 0
    again = i_n >= 0
    while again:
        largest, trace = 0.0, 0.0
        for i_p in range(0, A // 16):
            rows = i_p * 16 + o
            # Padding is an identity, which factors to itself.
            shift = tl.where(rows < R, ridge + added, 1.0)[:, None]
            right = (n >= i_p * 16) & (n < R)
            d = tl.load(
                p_states + rows[:, None] * R + rows[None, :],
                mask=(rows < R)[:, None] & (rows < R)[None, :],
                other=0.0,
            )
            a = tl.load(p_states + rows[:, None] * R + n[None, :], mask=(rows < R)[:, None] & right[None, :], other=0.0)
            trace += tl.sum(tl.where(on_diagonal, d, 0.0))
            d += tl.where(on_diagonal, shift, 0.0)
            a += tl.where(rows[:, None] == n[None, :], shift, 0.0)
            largest = tl.maximum(largest, tl.max(tl.max(tl.where(on_diagonal, d, 0.0), 1), 0))
            w = tl.where(rows[:, None] == r[None, :], 1.0, 0.0)
            eliminate_panel(p_a, p_inverse, d, a, w, i_p, A, R, R, BA, BR)
        largest_inverse, trace_of_inverse = 0.0, 0.0
        for i_p in range(0, A // 16):
            rows = i_p * 16 + o
            inverse = tl.zeros([16, BR], tl.float32)
            for j in range(i_p, A // 16):
                below = j * 16 + o
                left = tl.load(
                    p_inverse + below[None, :] * R + rows[:, None],
                    mask=(below < R)[None, :] & (rows < R)[:, None],
                    other=0.0,
                )
                w = tl.load(
                    p_inverse + below[:, None] * R + r[None, :], mask=(below < R)[:, None] & (r < R)[None, :], other=0.0
                )
                inverse += dot(left, w)
            diagonal = tl.where(rows[:, None] == r[None, :], inverse, 0.0)
            largest_inverse = tl.maximum(largest_inverse, tl.max(tl.max(diagonal, 1), 0))
            trace_of_inverse += tl.sum(diagonal)
            # In place: the panels that follow read none of these rows.
            tl.debug_barrier()
            tl.store(p_inverse + rows[:, None] * R + r[None, :], inverse, mask=(rows < R)[:, None] & (r < R)[None, :])
        tl.debug_barrier()
        condition = largest * largest_inverse
        # A maximum passes over NaN, a sum does not.
        good = (largest_inverse * (added + ridge) <= LARGEST_INVERSE) & (trace_of_inverse - trace_of_inverse == 0)
        again = (tries < TRIES) & (trace - trace == 0) & ~good
        if again:
            added = share * (trace + R * ridge)
            share *= SHIFT_GROWTH
            tries += 1
    if added > 0:
        diagonal = p_states + r * (R + 1)
        tl.store(diagonal, tl.load(diagonal, mask=r < R, other=0.0) + added, mask=r < R)
    # A tensor, not a constexpr as the comparison is declared.
    tl.store(p_cold + i_n, (condition > REFINE_ABOVE_CONDITION).to(tl.int32))  # pyright: ignore[reportAttributeAccessIssue]
