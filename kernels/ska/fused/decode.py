"""One decoding step in one kernel: a program per head of a row, the state updated in place (kernels/ska/decode.py)."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import device_function, next_power_of_2
from ..state import SKAState
from .tiles import load_matrix, store_matrix


@device_function
def _solve(w, x):
    """G^-1 x = W^T (W x) for x `[BR]`."""
    return tl.sum(w * tl.sum(w * x[None, :], 1)[:, None], 0)


@triton.jit
def _decode(
    p_q, p_k, p_v, p_scale, p_y, p_gram, p_transition, p_value_map, p_last, p_inverse, p_read_transition, p_read_map, H,
    R: tl.constexpr, P: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
    POWER: tl.constexpr, LAG: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    r, d = tl.arange(0, BR), tl.arange(0, BP)
    q = tl.load(p_q + i * R + r, mask=r < R, other=0.0).to(tl.float32)
    z = tl.load(p_k + i * R + r, mask=r < R, other=0.0).to(tl.float32)
    v = tl.load(p_v + i * P + d, mask=d < P, other=0.0).to(tl.float32)
    last = tl.load(p_last + i * R + r, mask=r < R, other=0.0)
    scale = tl.load(p_scale + i % H)
    w = load_matrix(p_inverse + i * R * R, R, R, BR, BR)
    if not CHUNK:
        # Row j is stored at j + 1, so that prefix sums exclude a row's own part; subtracting that large part would cancel digits.
        inside = ((r > 0) & (r < R))[:, None] & (r < R)[None, :]
        shifted = tl.load(p_inverse + i * R * R + (r - 1)[:, None] * R + r[None, :], mask=inside, other=0.0)
        p = tl.sum(w * z[None, :], 1)
        p_shifted = tl.sum(shifted * z[None, :], 1)
        before = 1.0 + tl.cumsum(p_shifted * p_shifted, 0)
        after = before + p * p
        # sqrt(before / after) - 1 without cancellation.
        root = tl.sqrt(before) / tl.sqrt(after)
        shrink = -(p * p / after) / (1.0 + root)
        slope = p / (tl.sqrt(before) * tl.sqrt(after))
        w += shrink[:, None] * w - slope[:, None] * tl.cumsum(p_shifted[:, None] * shifted, 0)
        tl.debug_barrier()  # both loads of W are done in every warp
        store_matrix(p_inverse + i * R * R, w, R, R, BR, BR)
    gram = load_matrix(p_gram + i * R * R, R, R, BR, BR)
    store_matrix(p_gram + i * R * R, gram + z[:, None] * z[None, :], R, R, BR, BR)
    m = load_matrix(p_transition + i * R * R, R, R, BR, BR) + z[:, None] * last[None, :]
    store_matrix(p_transition + i * R * R, m, R, R, BR, BR)
    c = load_matrix(p_value_map + i * P * R, P, R, BP, BR) + v[:, None] * (last if LAG else z)[None, :]
    store_matrix(p_value_map + i * P * R, c, P, R, BP, BR)
    if CHUNK:
        m = load_matrix(p_read_transition + i * R * R, R, R, BR, BR)
        c = load_matrix(p_read_map + i * P * R, P, R, BP, BR)
    x = _solve(w, q)
    for _ in tl.static_range(POWER):  # pyright: ignore[reportGeneralTypeIssues]
        x = _solve(w, scale * tl.sum(m * x[None, :], 1))
    y = tl.sum(c * x[None, :], 1)
    tl.store(p_y + i * P + d, y.to(p_y.dtype.element_ty), mask=d < P)
    tl.debug_barrier()  # the old last key is read in every warp
    tl.store(p_last + i * R + r, z, mask=r < R)


def warps(rank: int, width: int) -> int:
    """The number of warps of a program, so that the tiles of a head stay in registers."""
    return 4 if max(rank, width) <= 64 else 8


def ska_step_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sums: SKAState,
    inverse: Tensor,
    visible: SKAState | None,
    *,
    power: int,
    scale: float | Tensor,
    value_lag: bool,
    num_warps: int | None = None,
) -> Tensor:
    """One decoding step: y `[B, H, P]` of one token; `sums` and `inverse` are updated in place. Shapes as in `ska_step`."""
    batch, heads, rank = q.shape
    width = v.shape[-1]
    if not isinstance(scale, Tensor):
        scale = torch.full((heads,), float(scale), dtype=torch.float32, device=q.device)
    scale = scale.float().contiguous()
    y = torch.empty(batch, heads, width, dtype=v.dtype, device=v.device)
    read = sums if visible is None else visible
    launch: Any = _decode[(batch * heads,)]  # `num_warps` is an option of the launch, not a parameter of the kernel
    launch(
        q.contiguous(), k.contiguous(), v.contiguous(), scale, y, *sums, inverse, read.transition, read.value_map, heads,
        R=rank, P=width, BR=max(16, next_power_of_2(rank)), BP=max(16, next_power_of_2(width)),
        POWER=power, LAG=value_lag, CHUNK=visible is not None, num_warps=num_warps or warps(rank, width),
    )  # fmt: skip
    return y
