"""Small parts of the SKA mixer."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.documents import document_ids
from ...kernels.ska import DecodeState
from ..norm import at_least_fp32


class Recent(NamedTuple):
    """The last m inputs that a layer still needs when decoding, `[B, m, *]` each: raw keys and values that are written later,
    tokens for the gate."""

    keys: Tensor
    values: Tensor
    tokens: Tensor


class SKACache(NamedTuple):
    """The decoding state of an SKA layer. decode: the sums and their inverse factor; longest: `[B, H, 1]`, the largest norm of
    the prompt's raw keys, for "sequence-max" only; recent: for layers that use tokens before the present one."""

    decode: DecodeState
    longest: Tensor | None
    recent: Recent | None = None


class ScaledLinear(nn.Linear):
    """The linear map W (eta y) with one scale eta per head, which multiplies the weight, as that is smaller than y."""

    def forward(self, y: Tensor, eta: Tensor) -> Tensor:
        weight = self.weight.unflatten(1, (len(eta), -1)) * eta[:, None]
        return F.linear(y, weight.flatten(1).to(y.dtype))


def side_by_side(x: Tensor, weights: list[Tensor]) -> Tensor:
    """The products x W^T of several weights W, concatenated along the last dimension."""
    if x.dim() == 2:  # decoding: the weights are larger than what they give
        return torch.cat([F.linear(x, weight) for weight in weights], -1)
    return F.linear(x, torch.cat(weights))


def where_rows(rows: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """x where `rows` `[B]` is True, `other` elsewhere."""
    return torch.where(rows.view(-1, *[1] * (x.dim() - 1)), x, other)


def longest_key(k: Tensor, starts: Tensor | None) -> Tensor:
    """The largest key norm in each token's document: `[B, T, H, R]` -> `[B, T or 1, H, 1]`."""
    norms = at_least_fp32(k).norm(dim=-1)
    if starts is None:
        return norms.amax(1, keepdim=True)[..., None]
    ids = document_ids(starts)[..., None].expand_as(norms)
    longest = norms.new_zeros(norms.shape).scatter_reduce(1, ids, norms, "amax", include_self=False)
    return longest.gather(1, ids)[..., None]
