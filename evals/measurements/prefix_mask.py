"""A model whose SKA layers write what precedes the first position of a row that is to be answered, and nothing from it on.

The prefix mask of the Echo paper (arXiv 2605.06997): told apart from the operator by ablation.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...models import ModelConfig
from ...models.model import EchoLM


class PrefixMasked(nn.Module):
    """Takes what recall training and questions give a model, and says what is written."""

    def __init__(self, model: EchoLM):
        super().__init__()
        self.model = model

    @property
    def head(self) -> nn.Module | None:
        """The model's; `parameter_groups` asks for it."""
        return self.model.head

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.model.config

    def forward(self, tokens: Tensor, *, at: Tensor, openness: bool = False) -> Any:
        """Logits at the questions; `at` as in `EchoLM.forward`, where position 0 of the first row stands for none."""
        return self.model(tokens, at=at, written=before_questions(at, tokens.shape), openness=openness)


def before_questions(at: Tensor, shape: torch.Size) -> Tensor:
    """bool `[B, T]`: the tokens before the first position that is asked in their row; all of a row that asks nothing.

    Args:
        at: bool `[B, T]`, or int64 `[n]` of the flattened tokens, 0 for none.
    """
    asked = at
    if at.dtype != torch.bool:
        asked = torch.zeros(shape.numel(), dtype=torch.bool, device=at.device).index_fill(0, at, True)
        asked[:1].fill_(False)  # an assignment would copy from the host, which a CUDA graph cannot hold
        asked = asked.view(shape)
    return asked.cumsum(1) == 0
