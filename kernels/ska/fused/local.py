"""The second factorisation of the exact form: the contribution of a chunk's own keys to its operator."""

import triton
import triton.language as tl

from ..read import REFINE_ABOVE_GAIN
from .tiles import load_ids, load_matrix, load_rows, mul, place, split, store_matrix, transpose

REFINE_ABOVE = tl.constexpr(REFINE_ABOVE_GAIN)


@triton.jit(do_not_specialize=["T", "N", "H"])
def local_gram(
    p_k,  # [B, T, H, R]
    p_ids,  # [B, T] int32
    p_inverse,  # [n, R, R] fp32: G^-1 of the entering state
    p_a,  # [n, S, S] fp32, out: I + Z G^-1 Z^T, cut at document borders
    p_base,  # [n, S, R] fp32, out: Z G^-1
    p_cold,  # [n] int32, out: the gain is so large that solves need a step of refinement
    ridge,
    T,
    N,
    H,
    R: tl.constexpr,
    S: tl.constexpr,
    BR: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    INPUT_PARTS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Kernel of I + Z G^-1 Z^T for a chunk's own keys Z; one program computes one chunk of one head."""
    i_b, i_c, i_h, i_n = place(tl.program_id(0), N, H)
    s = tl.arange(0, S)
    t = i_c * S + s
    z = load_rows(p_k, i_b, i_h, t, T, H, R, BR)
    z_p = split(z, INPUT_PARTS, INTERPRET)
    inverse = split(load_matrix(p_inverse + i_n * R * R, R, R, BR, BR), 3, INTERPRET)
    base = mul(z_p, inverse, 2)
    if DOCUMENTS:
        ids = load_ids(p_ids, i_b, t, T)
        base = tl.where((ids == load_ids(p_ids, i_b, i_c * S - 1, T))[:, None], base, z / ridge)
    inner = mul(split(base, 3, INTERPRET), transpose(z_p), 2)
    if DOCUMENTS:
        inner = tl.where(ids[:, None] == ids[None, :], inner, 0.0)
    unit = s[:, None] == s[None, :]
    gain = tl.max(tl.max(tl.where(unit, inner, 0.0), 1), 0)
    tl.store(p_cold + i_n, (gain > REFINE_ABOVE).to(tl.int32))
    store_matrix(p_a + i_n * S * S, inner + tl.where(unit, 1.0, 0.0), S, S, S, S)
    store_matrix(p_base + i_n * S * R, base, S, R, S, BR)
