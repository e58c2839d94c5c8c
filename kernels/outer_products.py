"""Sums of outer products over many tokens, by which a segment of a sequence is added to a state."""

from typing import Any

import torch
from torch import Tensor

from .operator import uncompiled

CHUNK = 1024  # tokens summed in one product: sums of sums keep fp32 accurate over long segments


@uncompiled  # a single matrix product with its own precision: nothing that a compiler could fuse
def sum_of_outer_products(x: Tensor, b: Tensor) -> Tensor:
    """Sum the outer products x_t b_t^T over t, each group of b serving H / G heads.

    Args:
        x: `[B, T, H, P]`; b: `[B, T, G, N]`, in the dtype of x.

    Returns:
        `[B, H, P, N]` in fp32 (float64 for float64 inputs), whatever the precision of the factors.
    """
    batch, length, heads, width = x.shape
    groups = b.shape[2]
    if length == 0:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return x.new_zeros(batch, heads, width, b.shape[-1], dtype=dtype)
    # The heads of a group are one matrix: chunks are the only batch dimension, so that nothing is copied.
    x = x.unflatten(2, (groups, -1)).flatten(3)
    whole = length - length % CHUNK
    spans = ((0, whole, CHUNK), (whole, length, length - whole))
    sums = sum(_of_chunks(x[:, i:j], b[:, i:j], size) for i, j, size in spans if i < j)
    assert isinstance(sums, Tensor)  # at least one of the spans is not empty
    return sums.unflatten(1, (heads, width))


def _of_chunks(x: Tensor, b: Tensor, size: int) -> Tensor:
    """`[B, T, G, M]`, `[B, T, G, N]` -> `[B, G M, N]`, T a multiple of `size`."""
    x, b = (t.unflatten(1, (-1, size)) for t in (x, b))
    chunks = x.shape[:2]
    rows, others = (t.flatten(0, 1).unbind(2) for t in (x, b))
    sums = [_Products.apply(one.transpose(1, 2), other) for one, other in zip(rows, others, strict=True)]
    return torch.cat(sums, 1).unflatten(0, chunks).sum(1)


class _Products(torch.autograd.Function):
    """Batched product `[n, M, S]`, `[n, S, N]` -> `[n, M, N]`: factors as they are, sums in fp32 or better.

    `torch.bmm` would round each result of half-precision factors to half precision.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        if a.is_cuda and a.dtype in (torch.float16, torch.bfloat16):
            return torch.bmm(a, b, out_dtype=torch.float32)
        if a.dtype in (torch.float16, torch.bfloat16):
            return torch.bmm(a.float(), b.float())
        return torch.bmm(a, b)

    @staticmethod
    def backward(ctx: Any, dproducts: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        dproducts = dproducts.to(a.dtype)
        return torch.bmm(dproducts, b.transpose(1, 2)), torch.bmm(a.transpose(1, 2), dproducts)
