"""Values that are equal before a loop and only handed on in it are merged into one.

The kernel writes y[t] = x[t - 3], and 0 where t < 3. Compilation needs no GPU to show the fault: the `scf.for` of `ttir` carries no
value at all, where three were written, and the first of them is stored in every turn.
"""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["steps"])
def delay(p_x, p_y, steps, B: tl.constexpr):
    """Kernel of y[t] = x[t - 3]; rows are B numbers."""
    i = tl.arange(0, B)
    d0 = tl.zeros([B], tl.float32)
    d1, d2 = d0, d0
    for t in range(steps):
        tl.store(p_y + t * B + i, d2)
        d2 = d1
        d1 = d0
        d0 = tl.load(p_x + t * B + i)


def error(device: str = "cuda") -> float:
    """The error of y as a share of its norm."""
    x = torch.randn(50, 128, device=device)
    y = torch.empty_like(x)
    delay[1,](x, y, len(x), 128)
    wanted = torch.cat((torch.zeros_like(x[:3]), x[:-3]))
    return ((y - wanted).norm() / wanted.norm()).item()
