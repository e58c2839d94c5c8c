"""Device functions that the SSD kernels share: where a program works, loads and stores of tiles, decays between tokens.

Symbols: `[B, T, H, P]` are batch, tokens, heads and head width, G the groups that share b and c, N the state size, S the
tokens of a chunk and C the chunks of a row. A chunk is worked in tiles of BT tokens. Vectors per head and token (step
sizes, decays and their gradients) lie as `[B, H, C * S]` in fp32, so that the tokens of a head are contiguous.
"""

import triton
import triton.language as tl


@triton.jit
def load_rows(p_x, i_b, i_h, t, T, H, D: tl.constexpr, BD: tl.constexpr, INTERPRET: tl.constexpr):
    """Rows t `[BT]` of one head of a `[B, T, H, D]` tensor, zero behind the row's end: `[BT, BD]` in the tensor's dtype."""
    d = tl.arange(0, BD)
    o = ((i_b * T + t) * H + i_h)[:, None] * D + d[None, :]
    x = tl.load(p_x + o, mask=(t < T)[:, None] & (d < D)[None, :], other=0.0)
    return x.to(tl.float32) if INTERPRET else x  # the interpreter multiplies bf16 wrongly


@triton.jit
def load_columns(p_x, i_b, i_h, t, d, T, H, D: tl.constexpr, INTERPRET: tl.constexpr):
    """Columns d of rows t, transposed, `[len(d), BT]`: on Hopper, Triton 3.6 multiplies wrongly where the left factor is a
    tile that was transposed in registers, so such factors are loaded transposed."""
    o = ((i_b * T + t) * H + i_h)[None, :] * D + d[:, None]
    x = tl.load(p_x + o, mask=(t < T)[None, :] & (d < D)[:, None], other=0.0)
    return x.to(tl.float32) if INTERPRET else x


@triton.jit
def store_rows(p_x, x, i_b, i_h, t, T, H, D: tl.constexpr, BD: tl.constexpr):
    """Store `[BT, BD]` as rows t of one head of a `[B, T, H, D]` tensor."""
    d = tl.arange(0, BD)
    o = ((i_b * T + t) * H + i_h)[:, None] * D + d[None, :]
    tl.store(p_x + o, x.to(p_x.dtype.element_ty), mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def load_state(
    p_states, i, N: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, INTERPRET: tl.constexpr
):
    """State i of a `[..., N, P]` tensor, `[BN, BP]`."""
    n, p = tl.arange(0, BN), tl.arange(0, BP)
    o = i * (N * P) + n[:, None] * P + p[None, :]
    x = tl.load(p_states + o, mask=(n < N)[:, None] & (p < P)[None, :], other=0.0)
    return x.to(tl.float32) if INTERPRET else x


@triton.jit
def load_ids(p_ids, i_b, t, T):
    """Documents of tokens t, numbered from 0 in each row; 0 before the row, the last one's behind it."""
    return tl.load(p_ids + i_b * T + tl.minimum(t, T - 1), mask=t >= 0, other=0)


@triton.jit
def to_dtype_of(x, p, INTERPRET: tl.constexpr):
    """Round a tile to the dtype that p points to, for a product."""
    return x if INTERPRET else x.to(p.dtype.element_ty)


@triton.jit
def decays_between(later, earlier, ids_later, ids_earlier, DIAGONAL: tl.constexpr, DOCUMENTS: tl.constexpr):
    """How much of what token s wrote is left at token t: 2^(later_t - earlier_s), 0 for s > t and across document borders.

    Args:
        later, earlier: log2 of the decay since the chunk's entry, broadcastable to one tile: of t along one axis and
            of s along the other, in either orientation.
        ids_later, ids_earlier: their documents, likewise; DOCUMENTS only.
        DIAGONAL: t and s are the same tokens; otherwise all of t are behind all of s.
    """
    exponent = later - earlier
    if DIAGONAL:
        # Above the diagonal the difference is positive and could overflow.
        t, s = tl.arange(0, exponent.shape[0]), tl.arange(0, exponent.shape[1])
        seen = t[:, None] >= s[None, :] if later.shape[1] == 1 else t[:, None] <= s[None, :]
        exponent = tl.where(seen, exponent, float("-inf"))
    if DOCUMENTS:
        exponent = tl.where(ids_later == ids_earlier, exponent, float("-inf"))
    return tl.exp2(exponent)
