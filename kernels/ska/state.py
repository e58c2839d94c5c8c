"""The state of Spectral Koopman Attention: plain sums over the positions of one document."""

from typing import NamedTuple

import torch
from torch import Tensor


class SKAState(NamedTuple):
    """The state of SKA: `2 R^2 + P R + R` numbers per head, independent of the length of the context. The ridge is not part of
    it.

    Attributes:
        gram: `[B, H, R, R]`, the sum of z_t z_t^T.
        transition: `[B, H, R, R]`, the sum of z_t z_{t-1}^T.
        value_map: `[B, H, P, R]`, the sum of v_t z_t^T (value lag: v_t z_{t-1}^T).
        last_key: `[B, H, R]`, the last real key; padding does not overwrite it.
    """

    gram: Tensor
    transition: Tensor
    value_map: Tensor
    last_key: Tensor

    @classmethod
    def zeros(cls, batch: int, heads: int, rank: int, width: int, *, dtype=torch.float32, device=None) -> "SKAState":
        """The state of an empty document."""
        new = torch.zeros
        return cls(
            new(batch, heads, rank, rank, dtype=dtype, device=device),
            new(batch, heads, rank, rank, dtype=dtype, device=device),
            new(batch, heads, width, rank, dtype=dtype, device=device),
            new(batch, heads, rank, dtype=dtype, device=device),
        )
