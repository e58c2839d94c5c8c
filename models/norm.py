"""Normalisation layers, computed in fp32 or better."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """RMS normalisation (arXiv 1910.07467): x / rms(x) * weight over the last dimension."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_fp32(x)
        return F.rms_norm(wide, x.shape[-1:], self.weight.to(wide.dtype), self.eps).to(x.dtype)

    def initialize(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight)


class LayerNorm(nn.Module):
    """Layer normalisation (arXiv 1607.06450): (x - mean(x)) / std(x) * weight + bias over the last dimension."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_fp32(x)
        y = F.layer_norm(wide, x.shape[-1:], self.weight.to(wide.dtype), self.bias.to(wide.dtype), self.eps)
        return y.to(x.dtype)

    def initialize(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


class GatedRMSNorm(RMSNorm):
    """Gated RMS normalisation as in Mamba-2: norm(x * silu(z)) * weight in `groups` groups."""

    def __init__(self, width: int, eps: float, groups: int):
        super().__init__(width, eps)
        self.groups = groups

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        gated = at_least_fp32(x) * F.silu(at_least_fp32(z))
        grouped = gated.unflatten(-1, (self.groups, -1))
        normed = F.rms_norm(grouped, grouped.shape[-1:], None, self.eps).flatten(-2)
        return (normed * self.weight.to(normed.dtype)).to(x.dtype)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last dimension: `RMSNorm` without a weight."""
    return F.rms_norm(at_least_fp32(x), x.shape[-1:], eps=eps).to(x.dtype)


def at_least_fp32(x: Tensor) -> Tensor:
    """Convert half precision to fp32; fp32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """Make the normalisation layer of a kind: "rms" or "layer"."""
    return {"rms": RMSNorm, "layer": LayerNorm}[kind](width, eps)
