"""What an open write gate costs: a pressure to keep shut what no answer needs.

A model that answers everything at its training length has no gradient left that would close a gate on the noise of longer
contexts: sums of a million positions are then lost to rare ones that leak (docs/results/length.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..models import ModelConfig
from ..models.errors import UserError
from ..models.mixers.ska import SKA


def has_write_gate(config: ModelConfig) -> bool:
    """Whether there is anything to pay for."""
    return "ska" in config.layers and config.ska.write_gate != "none"


class WriteCost:
    """The mean of sigmoid(gate logit) over positions, heads and layers, of each forward pass.

    Of the logit, not of the gate: it pushes gates that are shut already, away from the point where they open, and hardly those
    that are wide open (the L0 norm of hard-concrete gates has the same shape: Louizos et al. 2018, eq. 12).
    """

    def __init__(self, model: nn.Module):
        """
        Raises:
            UserError: no SKA layer of the model has a write gate.
        """
        gated = [module for module in model.modules() if isinstance(module, SKA) and module.gate_proj is not None]
        if not gated:
            raise UserError("write_cost needs SKA layers with a write gate: this model has none")
        self._open: list[Tensor] = []
        self._handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self._look, with_kwargs=True) for layer in gated
        ]

    def _look(self, layer: SKA, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            logits = layer.gate_logits(*inputs, options.get("token"))
            self._open.append(torch.sigmoid(logits.float()).mean())

    def take(self) -> Tensor:
        """The cost of the last forward pass, with its gradient."""
        cost = torch.stack(self._open).mean()
        self._open.clear()
        return cost

    def remove(self) -> None:
        """Look at the model no longer."""
        for handle in self._handles:
            handle.remove()
