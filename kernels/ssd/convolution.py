"""The short causal depthwise convolution before the scan."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..documents import document_ids, inner_borders
from .fused_convolution import convolve, is_fused

Backend = Literal["auto", "torch", "triton"]


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    first: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    silu: bool = False,
    parts: tuple[int, int, int] | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """The causal depthwise convolution y_t = bias + sum_i weight[:, i] x_{t - (W - 1) + i}, with zeros before the document's
    first token.

    Args:
        x: `[B, T, C]`; weight: `[C, W]`; bias: `[C]`.
        state: `[B, W - 1, C]`, the inputs before the row's first token (zeros: the row starts a document).
        first: `[B, W - 1, C]`, in the dtype of x: what is returned for the first W - 1 tokens, where what comes before the row
            is known elsewhere (`enter_segment`).
        cu_seqlens: `[documents + 1]`, see `kernels/documents.py`.
        silu: return y * sigmoid(y) instead.
        parts: return the channels in three tensors of these widths.
        backend: "torch", or "triton" (CUDA only, W = 4, no `state`); "auto" takes the faster that runs here.

    Returns:
        `[B, T, C]`, or its parts.

    Raises:
        ValueError: a shape is wrong, or the backend does not run here.
    """
    batch, length, channels = x.shape
    taps = weight.shape[-1]
    if weight.shape != (channels, taps) or (state is not None and state.shape != (batch, taps - 1, channels)):
        raise ValueError(
            f"x {list(x.shape)} needs weight [{channels}, W] and state [{batch}, W - 1, {channels}], "
            f"not {list(weight.shape)} and {None if state is None else list(state.shape)}"
        )
    if first is not None and (first.shape != (batch, taps - 1, channels) or length < taps - 1):
        raise ValueError(
            f"first must be [{batch}, {taps - 1}, {channels}] of at least as many tokens, not {list(first.shape)} of {length}"
        )
    if backend == "triton" and not (state is None and is_fused(x, weight)):
        raise ValueError('backend "triton" needs CUDA tensors, triton, four taps and no state: use "torch"')
    starts = inner_borders(cu_seqlens, batch, length, x.device)
    ids = None if starts is None else document_ids(starts)
    widths = parts or (channels, 0, 0)
    found = convolve_documents(x, weight, bias, ids, parts=widths, state=state, first=first, silu=silu, backend=backend)
    return found if parts else found[0]


def convolve_documents(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor | None,
    *,
    parts: tuple[int, int, int],
    state: Tensor | None = None,
    first: Tensor | None = None,
    silu: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, ...]:
    """`causal_convolution` without its checks; ids: `[B, T]`, the document of each token, 0 for the one a row enters with."""
    if backend != "torch" and state is None and is_fused(x, weight):
        return convolve(x, weight, bias, ids, first, silu, parts)
    batch, _, channels = x.shape
    reach = weight.shape[-1] - 1
    if state is None:
        state = x.new_zeros(batch, reach, channels)
    y = sum_of_taps(x, weight, bias, state.to(x.dtype), ids)
    y = F.silu(y) if silu else y
    y = y if first is None else torch.cat((first, y[:, reach:]), 1)
    return y.split(parts, -1)


def sum_of_taps(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, ids: Tensor | None) -> Tensor:
    """The convolution in PyTorch; ids: `[B, T]`, the document of each token, 0 for the one that the row enters with."""
    length, taps = x.shape[1], weight.shape[-1]
    padded = torch.cat((state, x), 1)
    # A sum of shifted copies needs one comparison per tap to stop at borders, and is no slower than a grouped conv1d on the CPU.
    y = x * weight[:, -1] if bias is None else torch.addcmul(bias, x, weight[:, -1])
    padded_ids = None if ids is None else F.pad(ids, (taps - 1, 0))
    for lag in range(1, taps):
        first = taps - 1 - lag
        shifted = padded[:, first : first + length]
        if ids is not None and padded_ids is not None:
            same = padded_ids[:, first : first + length] == ids
            shifted = shifted * same[..., None]
        y = torch.addcmul(y, shifted, weight[:, -1 - lag])
    return y
