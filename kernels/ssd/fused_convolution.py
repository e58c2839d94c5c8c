"""The short convolution and its activation in Triton: each input is read once, forward and backward.

torch.compile makes four kernels of the backward pass, which read their inputs eleven times: 13% of a training step of
`echo-180m` on an H100 (docs/design/kernels.md). A program walks a piece of a sequence token by token, with the last inputs in
registers.
"""

import torch
from torch import Tensor

from ..available import INTERPRETER, TRITON, on_gpu

TAPS = 4  # the only width that these kernels support
PIECE, COLUMNS = 64, 128  # tokens that a program, of one warp, walks, and channels


def is_fused(x: Tensor, weight: Tensor) -> bool:
    """Whether the Triton kernels can compute with these arguments."""
    known = weight.shape[-1] == TAPS and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and TRITON and (on_gpu(x) or INTERPRETER)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor | None,
    first: Tensor | None,
    silu: bool,
    parts: tuple[int, int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """`causal_convolution` by Triton kernels, with its channels in three tensors; `ids`, `[B, T]`, number each row's documents,
    or None."""
    from .convolution_kernels import convolve  # triton is not there on every machine

    ids = None if ids is None else ids.to(torch.int32)
    return convolve(x, weight, bias, ids, first, silu, list(parts))
