"""Device functions that the SKA kernels share: positions of programs, loads and stores of tiles, products of tiles split into
bf16 parts.

Everything is worked in tiles of one chunk of one head: rows are tokens, `[BT, BR]` for keys and `[BT, BP]` for values,
padded with zeros to powers of two. One index counts (row of the batch, chunk, head), and `place` takes it apart.
Tiles are fp32 in registers whatever the dtype in memory (and the interpreter knows no bf16). Loops over `tl.static_range` have a
`pyright: ignore`: Triton declares that it cannot be iterated, as is true outside of kernels.
"""

import triton.language as tl

from ...launch import device_function


@device_function
def place(i, N, H):
    """The row of the batch, the chunk and the head that index i stands for, and i itself, all in 64 bits."""
    i = tl.zeros((), tl.int64) + i  # the interpreter counts loops in Python's integers
    return i // (N * H), (i // H) % N, i % H, i


@device_function
def load_rows(p_x, i_b, i_h, t, T, H, D: tl.constexpr, BD: tl.constexpr):
    """Rows t `[BT]` of one head of a `[B, T, H, D]` tensor; zero where t lies outside the row."""
    d = tl.arange(0, BD)
    inside = (t >= 0) & (t < T)
    o = ((i_b * T + t) * H + i_h)[:, None] * D + d[None, :]
    return tl.load(p_x + o, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@device_function
def load_columns(p_x, i_b, i_h, t, T, H, D: tl.constexpr, BD: tl.constexpr):
    """`load_rows` transposed, `[BD, BT]`: on Hopper, Triton 3.4 to 3.7 gives wrong products where the left factor is a
    tile transposed in registers, so what must stand transposed on the left is loaded so."""
    d = tl.arange(0, BD)
    inside = (t >= 0) & (t < T)
    o = ((i_b * T + t) * H + i_h)[None, :] * D + d[:, None]
    return tl.load(p_x + o, mask=inside[None, :] & (d < D)[:, None], other=0.0).to(tl.float32)


@device_function
def store_columns(p_x, x, i_b, i_h, t, T, H, D: tl.constexpr, BD: tl.constexpr):
    """Store a `[BD, BT]` tile as rows t."""
    d = tl.arange(0, BD)
    o = ((i_b * T + t) * H + i_h)[None, :] * D + d[:, None]
    tl.store(p_x + o, x.to(p_x.dtype.element_ty), mask=(t < T)[None, :] & (d < D)[:, None])


@device_function
def store_rows(p_x, x, i_b, i_h, t, T, H, D: tl.constexpr, BD: tl.constexpr):
    """Store a `[BT, BD]` tile as rows t."""
    d = tl.arange(0, BD)
    o = ((i_b * T + t) * H + i_h)[:, None] * D + d[None, :]
    tl.store(p_x + o, x.to(p_x.dtype.element_ty), mask=(t < T)[:, None] & (d < D)[None, :])


@device_function
def load_matrix(p_m, M: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """A contiguous `[M, D]` matrix in a `[BM, BD]` tile."""
    m, d = tl.arange(0, BM), tl.arange(0, BD)
    inside = (m < M)[:, None] & (d < D)[None, :]
    return tl.load(p_m + m[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)


@device_function
def store_matrix(p_m, x, M: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """Store a `[BM, BD]` tile as a contiguous `[M, D]` matrix."""
    m, d = tl.arange(0, BM), tl.arange(0, BD)
    tl.store(p_m + m[:, None] * D + d[None, :], x, mask=(m < M)[:, None] & (d < D)[None, :])


@device_function
def load_ids(p_ids, i_b, t, T):
    """Documents of tokens t, numbered from 0 in each row of the batch; 0 before the row, the last one's behind it."""
    return tl.load(p_ids + i_b * T + tl.minimum(t, T - 1), mask=t >= 0, other=0)


@device_function
def _half(x, INTERPRET: tl.constexpr):
    return x if INTERPRET else x.to(tl.bfloat16)


@device_function
def _leading_bits(x):
    """The first 8 bits of each number's mantissa: a bf16 in a float."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@device_function
def split(x, PARTS: tl.constexpr, INTERPRET: tl.constexpr):
    """Split a tile into a sum of PARTS bf16 tiles, leading bits first: 3 represent fp32 exactly, 1 suffices for numbers that
    were bf16."""
    parts = ()
    for _ in tl.static_range(PARTS - 1):  # pyright: ignore[reportGeneralTypeIssues]
        leading = _leading_bits(x)
        x -= leading
        parts = parts + (_half(leading, INTERPRET),)
    return parts + (_half(x, INTERPRET),)


@device_function
def transpose(a):
    """Transpose a tile in parts; it may be a right factor, or a left one that was just loaded (see load_columns)."""
    parts = ()
    for i in tl.static_range(len(a)):  # pyright: ignore[reportGeneralTypeIssues]
        parts = parts + (tl.trans(a[i]),)
    return parts


@device_function
def mul(a, b, LEVEL: tl.constexpr):
    """A B of tiles in parts: `[M, K]` and `[K, N]` -> `[M, N]` fp32.

    Tensor cores multiply bf16 exactly and add in fp32; the products of parts i and j with i + j <= LEVEL leave a
    relative error of 2^-(8 LEVEL + 8). Products with the ridge-conditioned inverse use LEVEL 2, as accurate as fp32.
    """
    c = tl.zeros([a[0].shape[0], b[0].shape[1]], tl.float32)
    for s in tl.static_range(LEVEL + 1):  # pyright: ignore[reportGeneralTypeIssues]
        for i in tl.static_range(len(a)):  # pyright: ignore[reportGeneralTypeIssues]
            if (LEVEL - s - i >= 0) & (LEVEL - s - i < len(b)):
                c = tl.dot(a[i], b[LEVEL - s - i], c, input_precision="ieee")
    return c


@device_function
def load_previous_keys(
    p_k, p_last, p_ids, i_b, i_h, t, T, H, R: tl.constexpr, BR: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """The keys one position before t: `last_key` `[B, H, R]` before the first, zero before a document's first."""
    x = load_rows(p_k, i_b, i_h, t - 1, T, H, R, BR)
    r = tl.arange(0, BR)
    last = tl.load(p_last + (i_b * H + i_h) * R + r, mask=r < R, other=0.0)
    x = tl.where((t == 0)[:, None], last[None, :], x)
    if DOCUMENTS:
        x = tl.where((load_ids(p_ids, i_b, t, T) == load_ids(p_ids, i_b, t - 1, T))[:, None], x, 0.0)
    return x


@device_function
def add_matrix(p_m, x, OVERWRITE: tl.constexpr, M: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """Add a tile to a matrix in memory, which keeps registers free."""
    if not OVERWRITE:
        tl.debug_barrier()  # other lanes may have stored what this one loads
        x += load_matrix(p_m, M, D, BM, BD)
    store_matrix(p_m, x, M, D, BM, BD)


@device_function
def add_transposed(
    p_m, x, OVERWRITE: tl.constexpr, M: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr
):
    """Accumulate a `[M, D]` tile into a `[D, M]` matrix in memory."""
    m, d = tl.arange(0, BM), tl.arange(0, BD)
    p_m += d[None, :] * M + m[:, None]
    inside = (m < M)[:, None] & (d < D)[None, :]
    if not OVERWRITE:
        tl.debug_barrier()
        x += tl.load(p_m, mask=inside, other=0.0)
    tl.store(p_m, x, mask=inside)
