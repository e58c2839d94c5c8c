"""Two products added up, X M^T + tril(X Z^T) V, with X `[64, 64]` and M and V `[32, 64]` and `[64, 32]` (Hopper).

Each product alone is right, and so is the sum where M and V are 64 wide. All tiles are sums of bf16 tiles. In `read_forward`,
from which this was taken, the same products read shared memory that is not there.
"""

import torch
import triton
import triton.language as tl

from echo_lm.kernels.available import INTERPRETER
from echo_lm.kernels.ska.fused.solve import causal_mul
from echo_lm.kernels.ska.fused.tiles import mul, split, transpose


@triton.jit
def add_products(p_x, p_m, p_z, p_v, p_y, N: tl.constexpr, P: tl.constexpr, INTERPRET: tl.constexpr):
    """Kernel of y = X M^T + tril(X Z^T) V, `[N, P]`; X and M are split into two bf16 parts, Z and V hold bf16 numbers."""
    n, p = tl.arange(0, N), tl.arange(0, P)
    x = split(tl.load(p_x + n[:, None] * N + n[None, :]), 2, INTERPRET)
    z = split(tl.load(p_z + n[:, None] * N + n[None, :]), 1, INTERPRET)
    m = split(tl.load(p_m + p[:, None] * N + n[None, :]), 2, INTERPRET)
    v = split(tl.load(p_v + n[:, None] * P + p[None, :]), 1, INTERPRET)
    y = mul(x, transpose(m), 1)
    y += causal_mul(x, z, v, n[:, None] >= n[None, :], 1, INTERPRET)
    tl.store(p_y + n[:, None] * P + p[None, :], y)


def error(device: str = "cuda", width: int = 32) -> float:
    """The error of y as a share of its norm; `width` is that of M and V."""
    x = torch.randn(64, 64, device=device)
    z = torch.randn(64, 64, device=device).bfloat16().float()
    m = torch.randn(width, 64, device=device)
    v = torch.randn(64, width, device=device).bfloat16().float()
    y = torch.empty(64, width, device=device)
    add_products[1,](x, m, z, v, y, 64, width, INTERPRETER, num_warps=4)
    wanted = x.double() @ m.double().mT + (x.double() @ z.double().mT).tril() @ v.double()
    return ((y.double() - wanted).norm() / wanted.norm()).item()
