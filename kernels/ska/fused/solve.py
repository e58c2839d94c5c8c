"""Rows x_t -> rows G_t^-1 x_t, and the filter step between two of them: what forward and backward share.

Matrices come in parts (tiles.py), rows x as fp32 tiles.
"""

import triton
import triton.language as tl

from .tiles import load_ids, load_matrix, mul, split, transpose


@triton.jit
def causal_mul(x, a, b, causal, LEVEL: tl.constexpr, INTERPRET: tl.constexpr):
    """((X A^T) * causal) B: for each row x_t the sum over s <= t of (x_t . a_s) b_s."""
    inner = tl.where(causal, mul(split(x, LEVEL + 1, INTERPRET), transpose(a), LEVEL), 0.0)
    return mul(split(inner, LEVEL + 1, INTERPRET), b, LEVEL)


@triton.jit
def solve_once(
    x, inverse, w, causal, old, ridge, LOCAL: tl.constexpr, DOCUMENTS: tl.constexpr, INTERPRET: tl.constexpr
):
    """X G^-1 - ((X W^T) * causal) W, the second term for LOCAL only."""
    y = mul(split(x, 3, INTERPRET), inverse, 2)
    if LOCAL:
        if DOCUMENTS:
            y = tl.where(old[:, None], y, x / ridge)
        y -= causal_mul(x, w, w, causal, 2, INTERPRET)
    return y


@triton.jit
def solve(
    x,
    inverse,
    w,
    gram,
    z,
    causal,
    old,
    ridge,
    LOCAL: tl.constexpr,
    REFINE: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """`solve_once`; with REFINE one more step, against the operator itself. `gram` holds the ridge."""
    y = solve_once(x, inverse, w, causal, old, ridge, LOCAL, DOCUMENTS, INTERPRET)
    if REFINE:
        product = mul(split(y, 3, INTERPRET), gram, 2)
        if LOCAL:
            if DOCUMENTS:
                product = tl.where(old[:, None], product, y * ridge)
            product += causal_mul(y, z, z, causal, 2, INTERPRET)
        y += solve_once(x - product, inverse, w, causal, old, ridge, LOCAL, DOCUMENTS, INTERPRET)
    return y


@triton.jit
def skip(p_cold, i_n, LOCAL: tl.constexpr, REFINE: tl.constexpr):
    """Whether another launch has this chunk: cold ones are refined. Without local terms all are: a few products more,
    and no chunk of few keys loses its gradients to 1/ridge.

    Two launches, not a branch: the launch of the warm chunks then holds neither the gram nor the second solve.
    """
    result = False
    if LOCAL:
        result = (tl.load(p_cold + i_n) != 0) != REFINE
    return result


@triton.jit
def load_inverse(p_states, p_inverse_factor, ridge, R: tl.constexpr, BR: tl.constexpr, INTERPRET: tl.constexpr):
    """G^-1 and G of an entering state, in parts."""
    r = tl.arange(0, BR)
    factor = split(load_matrix(p_inverse_factor, R, R, BR, BR), 3, INTERPRET)
    inverse = split(mul(transpose(factor), factor, 2), 3, INTERPRET)
    gram = load_matrix(p_states, R, R, BR, BR) + tl.where(r[:, None] == r[None, :], ridge, 0.0)
    return inverse, split(gram, 3, INTERPRET)


@triton.jit
def document_masks(p_ids, i_b, i_c, t, T, S: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Rows of the document that the chunk enters with `[BT]`, and which rows see which `[BT, BT]`."""
    old = t >= 0
    causal = t[:, None] >= t[None, :]
    if DOCUMENTS:
        ids = load_ids(p_ids, i_b, t, T)
        old = ids == load_ids(p_ids, i_b, i_c * S - 1, T)
        causal = causal & (ids[:, None] == ids[None, :])
    return old, causal


@triton.jit
def keep_old(x, old, DOCUMENTS: tl.constexpr):
    """Zero the rows that do not see the entering state."""
    if DOCUMENTS:
        x = tl.where(old[:, None], x, 0.0)
    return x


@triton.jit
def filter_step(
    x, transition, z, z_prev, causal, old, LOCAL: tl.constexpr, DOCUMENTS: tl.constexpr, INTERPRET: tl.constexpr
):
    """X M^T + ((X Z_prev^T) * causal) Z: rows M_t x_t."""
    y = mul(split(keep_old(x, old, DOCUMENTS), 3, INTERPRET), transpose(transition), 2)
    if LOCAL:
        y += causal_mul(x, z_prev, z, causal, 2, INTERPRET)
    return y
