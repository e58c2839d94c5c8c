"""The short causal depthwise convolution before the scan."""

import torch
from torch import Tensor

from ..documents import document_ids, inner_borders


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """y_t = bias + sum_i weight[:, i] x_{t - (W - 1) + i}, zero before the document's first token.

    Args:
        x: `[B, T, C]`; weight: `[C, W]`; bias: `[C]`.
        state: `[B, W - 1, C]`, the inputs before the row's first token (zeros: the row starts a document).
        cu_seqlens: `[documents + 1]`, see `kernels/documents.py`.

    Returns:
        `[B, T, C]`.

    Raises:
        ValueError: a shape is wrong.
    """
    batch, length, channels = x.shape
    taps = weight.shape[-1]
    if weight.shape != (channels, taps) or (state is not None and state.shape != (batch, taps - 1, channels)):
        raise ValueError(
            f"x {list(x.shape)} needs weight [{channels}, W] and state [{batch}, W - 1, {channels}], "
            f"not {list(weight.shape)} and {None if state is None else list(state.shape)}"
        )
    if state is None:
        state = x.new_zeros(batch, taps - 1, channels)
    padded = torch.cat((state.to(x.dtype), x), 1)
    starts = inner_borders(cu_seqlens, batch, length, x.device)
    # A sum of shifted copies cuts at borders for one comparison a tap, and is no slower than a grouped
    # conv1d on the CPU.
    y = x * weight[:, -1] if bias is None else torch.addcmul(bias, x, weight[:, -1])
    ids = None if starts is None else torch.nn.functional.pad(document_ids(starts), (taps - 1, 0))
    for lag in range(1, taps):
        first = taps - 1 - lag
        shifted = padded[:, first : first + length]
        if ids is not None:
            same = ids[:, first : first + length] == ids[:, taps - 1 :]
            shifted = shifted * same[..., None]
        y = torch.addcmul(y, shifted, weight[:, -1 - lag])
    return y
