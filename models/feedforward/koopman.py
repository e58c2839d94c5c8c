"""The Koopman MLP: a lift, a block-diagonal linear operator of stable 2x2 blocks, a readout (arXiv 2605.06997 §3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..initialization import normal_by_fan_in


class KoopmanMLP(nn.Module):
    """The Koopman MLP: readout(K silu(lift(x))), K in blocks [[a, w], [-w, a]]; gated: readout(K silu(lift(x)) *
    sigmoid(gate(x))).

    Args:
        unit: "disk" scales a pair (a, w) down to modulus 1 where it is above; "circle" scales every pair to 1.
    """

    def __init__(self, d_model: int, width: int, num_layers: int, *, unit: str = "disk", gated: bool = False):
        super().__init__()
        self.lift = nn.Linear(d_model, width, bias=False)
        self.readout = nn.Linear(width, d_model, bias=False)
        self.gate = nn.Linear(d_model, width, bias=False) if gated else None
        self.pairs = nn.Parameter(torch.empty(width // 2, 2))
        self.unit = unit
        self.num_layers = num_layers

    def operator(self) -> tuple[Tensor, Tensor]:
        """The parameters a and w of every 2x2 block, `[width / 2]` each, inside the unit disk or on the unit circle."""
        modulus = self.pairs.norm(dim=1, keepdim=True)
        floor = 1.0 if self.unit == "disk" else 1e-6
        a, w = (self.pairs / modulus.clamp(min=floor)).unbind(1)
        return a, w

    def forward(self, x: Tensor) -> Tensor:
        a, w = self.operator()
        lifted = F.silu(self.lift(x))
        if self.gate is None:
            # The operator acts on the readout's columns once instead of on every token.
            even, odd = self.readout.weight.unflatten(1, (-1, 2)).unbind(2)
            weight = torch.stack((a * even - w * odd, w * even + a * odd), 2).flatten(1)
            return F.linear(lifted, weight)
        even, odd = lifted.unflatten(-1, (-1, 2)).unbind(-1)
        evolved = torch.stack((a * even + w * odd, a * odd - w * even), -1).flatten(-2)
        return self.readout(evolved * torch.sigmoid(self.gate(x)))

    def initialize(self, generator: torch.Generator) -> None:
        normal_by_fan_in(self.lift.weight, generator)
        normal_by_fan_in(self.readout.weight, generator, gain=self.num_layers**-0.5)
        if self.gate is not None:
            normal_by_fan_in(self.gate.weight, generator)
        nn.init.ones_(self.pairs[:, 0])
        nn.init.normal_(self.pairs[:, 1], std=0.1, generator=generator)
