"""Solves with each token's operator (rows x_t -> G_t^-1 x_t) and filter steps, as device functions for forward and backward.

Matrices come in parts (tiles.py), rows x as fp32 tiles.
"""

import triton.language as tl

from ...launch import device_function
from .tiles import load_ids, load_matrix, mul, split, transpose


@device_function
def causal_mul(x, a, b, causal, LEVEL: tl.constexpr, INTERPRET: tl.constexpr):
    """((X A^T) * causal) B: for each row x_t the sum over s <= t of (x_t . a_s) b_s. X is in parts, as A and B."""
    inner = tl.where(causal, mul(x, transpose(a), LEVEL), 0.0)
    return mul(split(inner, LEVEL + 1, INTERPRET), b, LEVEL)


@device_function
def solve_once(
    x,
    inverse,
    w,
    causal,
    old,
    ridge,
    PARTS: tl.constexpr,
    LOCAL: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """X G^-1 - ((X W^T) * causal) W, the second term for LOCAL only; X is exact in PARTS parts."""
    x_p = split(x, PARTS, INTERPRET)
    y = mul(x_p, inverse, 2)
    if LOCAL:
        if DOCUMENTS:
            y = tl.where(old[:, None], y, x / ridge)
        y -= causal_mul(x_p, w, w, causal, 2, INTERPRET)
    return y


@device_function
def solve(
    x,
    inverse,
    w,
    z,
    p_gram,
    causal,
    old,
    cold,
    ridge,
    R: tl.constexpr,
    BR: tl.constexpr,
    PARTS: tl.constexpr,
    LOCAL: tl.constexpr,
    REFINE: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """`solve_once`, and one more step against the operator itself where digits may be lost: with REFINE for LOCAL, else where the
    chunk is `cold`. X is exact in PARTS parts."""
    y = solve_once(x, inverse, w, causal, old, ridge, PARTS, LOCAL, DOCUMENTS, INTERPRET)
    if LOCAL:
        if REFINE:
            y_p = split(y, 3, INTERPRET)
            product = mul(y_p, load_operator(p_gram, ridge, R, BR, INTERPRET), 2)
            if DOCUMENTS:
                product = tl.where(old[:, None], product, y * ridge)
            product += causal_mul(y_p, z, z, causal, 2, INTERPRET)
            y += solve_once(x - product, inverse, w, causal, old, ridge, 3, LOCAL, DOCUMENTS, INTERPRET)
    elif cold != 0:
        product = mul(split(y, 3, INTERPRET), load_operator(p_gram, ridge, R, BR, INTERPRET), 2)
        y += mul(split(x - product, 3, INTERPRET), inverse, 2)
    return y


@device_function
def load_operator(p_gram, ridge, R: tl.constexpr, BR: tl.constexpr, INTERPRET: tl.constexpr):
    """Load G = gram + ridge I of an entering state, in parts."""
    r = tl.arange(0, BR)
    gram = load_matrix(p_gram, R, R, BR, BR) + tl.where(r[:, None] == r[None, :], ridge, 0.0)
    return split(gram, 3, INTERPRET)


@device_function
def document_masks(p_ids, i_b, i_c, t, T, S: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Masks of the rows in the document that the chunk enters with `[BT]`, and of the rows that each row may see `[BT, BT]`."""
    old = t >= 0
    causal = t[:, None] >= t[None, :]
    if DOCUMENTS:
        ids = load_ids(p_ids, i_b, t, T)
        old = ids == load_ids(p_ids, i_b, i_c * S - 1, T)
        causal = causal & (ids[:, None] == ids[None, :])
    return old, causal


@device_function
def keep_old(x, old, DOCUMENTS: tl.constexpr):
    """Zero the rows that do not see the entering state."""
    if DOCUMENTS:
        x = tl.where(old[:, None], x, 0.0)
    return x


@device_function
def filter_step(
    x, transition, z, z_prev, causal, old, LOCAL: tl.constexpr, DOCUMENTS: tl.constexpr, INTERPRET: tl.constexpr
):
    """X M^T + ((X Z_prev^T) * causal) Z: rows M_t x_t."""
    y = mul(split(keep_old(x, old, DOCUMENTS), 3, INTERPRET), transpose(transition), 2)
    if LOCAL:
        y += causal_mul(split(x, 3, INTERPRET), z_prev, z, causal, 2, INTERPRET)
    return y
