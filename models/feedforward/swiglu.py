"""The SwiGLU feed-forward (arXiv 2002.05202)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..initialization import normal_by_fan_in


class SwiGLU(nn.Module):
    """The SwiGLU layer down(silu(gate(x)) * up(x)): three matrices of `width` x d_model."""

    def __init__(self, d_model: int, width: int, num_layers: int):
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)
        self.num_layers = num_layers

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)

    def initialize(self, generator: torch.Generator) -> None:
        normal_by_fan_in(self.gate_up.weight, generator)
        normal_by_fan_in(self.down.weight, generator, gain=self.num_layers**-0.5)
