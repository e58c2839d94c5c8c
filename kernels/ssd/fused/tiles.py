"""Device functions that the SSD kernels share: where a program works, loads and stores of tiles, decays between tokens.

Symbols: `[B, T, H, P]` are batch, tokens, heads and head width, G the groups that share b and c, N the state size, S the
tokens of a chunk and C the chunks of a row. Vectors per head and token (step
sizes, decays and their gradients) lie as `[B, H, C * S]` in fp32, so that the tokens of a head are contiguous.
"""

import triton.language as tl

from ...launch import device_function


@device_function
def load_rows(p_x, row, i_h, t, T, H, D: tl.constexpr, BD: tl.constexpr, INTERPRET: tl.constexpr):
    """Tokens t of one head of a `[B, T, H, D]` tensor, zero behind the row's end: `[len(t), BD]` in the tensor's dtype.

    `row` is the number of the row's first token. Offsets do not depend on the head, so that a loop over heads keeps them.
    """
    d = tl.arange(0, BD)
    inside = (t < T)[:, None]
    if D < BD:
        inside = inside & (d < D)[None, :]
    x = tl.load((p_x + i_h * D) + (((row + t) * H)[:, None] * D + d[None, :]), mask=inside, other=0.0)
    return x.to(tl.float32) if INTERPRET else x  # the interpreter multiplies bf16 wrongly


@device_function
def load_columns(p_x, row, i_h, t, d, T, H, D: tl.constexpr, INTERPRET: tl.constexpr):
    """Columns d of tokens t, transposed, `[len(d), len(t)]`: on Hopper, Triton 3.6 multiplies wrongly where the left factor is
    a tile that was transposed in registers, so such factors are loaded transposed."""
    inside = (t < T)[None, :] & (d < D)[:, None]
    x = tl.load((p_x + i_h * D) + (((row + t) * H)[None, :] * D + d[:, None]), mask=inside, other=0.0)
    return x.to(tl.float32) if INTERPRET else x


@device_function
def store_rows(p_x, x, row, i_h, t, T, H, D: tl.constexpr, BD: tl.constexpr):
    """Store `[len(t), BD]` as tokens t of one head of a `[B, T, H, D]` tensor."""
    d = tl.arange(0, BD)
    inside = (t < T)[:, None]
    if D < BD:
        inside = inside & (d < D)[None, :]
    p = (p_x + i_h * D) + (((row + t) * H)[:, None] * D + d[None, :])
    tl.store(p, x.to(p_x.dtype.element_ty), mask=inside)


@device_function
def load_state(
    p_states, i, N: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, INTERPRET: tl.constexpr
):
    """State i of a `[..., N, P]` tensor, `[BN, BP]`."""
    n, p = tl.arange(0, BN), tl.arange(0, BP)
    p_states += i * (N * P)
    o = n[:, None] * P + p[None, :]
    if (N < BN) or (P < BP):
        x = tl.load(p_states + o, mask=(n < N)[:, None] & (p < P)[None, :], other=0.0)
    else:
        x = tl.load(p_states + o)
    return x.to(tl.float32) if INTERPRET else x


@device_function
def load_ids(p_ids, i_b, t, T):
    """Documents of tokens t, numbered from 0 in each row; 0 before the row, the last one's behind it."""
    return tl.load(p_ids + i_b * T + tl.minimum(t, T - 1), mask=t >= 0, other=0)


@device_function
def to_dtype_of(x, p, INTERPRET: tl.constexpr):
    """Round a tile to the dtype that p points to, for a product."""
    return x if INTERPRET else x.to(p.dtype.element_ty)


@device_function
def decays_between(later, earlier, o, ids_later, ids_earlier, DOCUMENTS: tl.constexpr):
    """The decay of the state from token s to token t of the same chunk, 2^(later_t - earlier_s); 0 for s > t and across documents.

    Args:
        later: log2 of the decay from the chunk's entry to t: `[S, 1]`, or `[1, S]` for the transposed tile.
        earlier: the same to s: `[1, S]`, or `[S, 1]`.
        o: positions `[S]` of the tokens in the chunk.
        ids_later: the documents of tokens t, shaped like `later`; DOCUMENTS only.
        ids_earlier: the documents of tokens s, shaped like `earlier`; DOCUMENTS only.
    """
    # Where s > t the difference is positive and could overflow.
    seen = o[:, None] >= o[None, :] if later.shape[1] == 1 else o[:, None] <= o[None, :]
    if DOCUMENTS:
        seen = seen & (ids_later == ids_earlier)
    return tl.exp2(tl.where(seen, later - earlier, float("-inf")))
