"""The prefix mask of the Echo paper (arXiv 2605.06997): SKA layers write only the tokens before a row's first query.

The ablation sweep separates its effect from that of the operator.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...models import ModelConfig
from ...models.model import EchoLM


class PrefixMasked(nn.Module):
    """Wraps a model and gives it the write mask of `tokens_before_queries` in recall training and evaluation."""

    def __init__(self, model: EchoLM):
        super().__init__()
        self.model = model

    @property
    def head(self) -> nn.Module | None:
        """The head of the wrapped model, which `parameter_groups` needs."""
        return self.model.head

    @property
    def config(self) -> ModelConfig:
        """The config of the wrapped model."""
        return self.model.config

    def forward(self, tokens: Tensor, *, logits_to_keep: Tensor, return_gate_mean: bool = False) -> Any:
        """Logits at the queries; `logits_to_keep` as in `EchoLM.forward`, where position 0 of the first row stands for none."""
        write_mask = tokens_before_queries(logits_to_keep, tokens.shape)
        return self.model(
            tokens, logits_to_keep=logits_to_keep, write_mask=write_mask, return_gate_mean=return_gate_mean
        )


def tokens_before_queries(queries: Tensor, shape: torch.Size) -> Tensor:
    """bool `[B, T]`: the tokens before the first query of their row; all tokens of a row without queries.

    Args:
        queries: their positions, as bool `[B, T]`, or as int64 `[n]` of the flattened tokens, 0 for none.
    """
    is_query = queries
    if queries.dtype != torch.bool:
        is_query = torch.zeros(shape.numel(), dtype=torch.bool, device=queries.device).index_fill(0, queries, True)
        is_query[:1].fill_(False)  # an assignment would copy from the host, which a CUDA graph cannot hold
        is_query = is_query.view(shape)
    return is_query.cumsum(1) == 0
