"""A training batch: tokens, labels, loss mask and document borders."""

from dataclasses import dataclass, replace

import torch

from ...models.common.errors import UserError


@dataclass(frozen=True)
class Batch:
    """A training batch of `B` rows of `T` tokens.

    Attributes:
        tokens: int64 `[B, T]`, inputs.
        labels: int64 `[B, T]`, the token to predict at each position; already shifted.
        loss_mask: float32 `[B, T]`, the weight of the label in the loss: 0 for none, 1 in text.
        cu_seqlens: int32 `[documents + 1]`, borders in the flattened `B * T` tokens; every row start is one.
        is_recall: bool `[B]`, which rows are recall; the others are text.
        sources: int64 `[B]`, the text source of each row as an index of `source_names`, -1 for recall; None if it has no names.
        source_names: of the text sources, the same in all batches of the run.
        whole_rows: no document begins inside a row, in this batch and all others of the run, so that kernels without borders
            can be used. A property of the run, since a change between batches would recompile the kernels.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    cu_seqlens: torch.Tensor
    is_recall: torch.Tensor
    whole_rows: bool = False
    sources: torch.Tensor | None = None
    source_names: tuple[str, ...] = ()

    def rows(self, rank: int, world_size: int) -> "Batch":
        """The `rank`-th of `world_size` equal groups of consecutive rows, with its own `cu_seqlens` from 0.

        Also splits a rank's rows into micro-batches.

        Raises:
            UserError: `world_size` does not divide the number of rows.
        """
        if len(self.tokens) % world_size:
            raise UserError(f"{len(self.tokens)} rows cannot be dealt out evenly to {world_size}: use a multiple of it")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        rows = len(self.tokens) // world_size
        return self.row_range(rank * rows, (rank + 1) * rows)

    def row_range(self, start: int, stop: int) -> "Batch":
        """Rows `start` to `stop`, `stop` excluded, with their own `cu_seqlens` from 0."""
        length = self.tokens.shape[1]
        inside = (self.cu_seqlens >= start * length) & (self.cu_seqlens <= stop * length)
        return Batch(
            tokens=self.tokens[start:stop],
            labels=self.labels[start:stop],
            loss_mask=self.loss_mask[start:stop],
            cu_seqlens=self.cu_seqlens[inside] - start * length,
            is_recall=self.is_recall[start:stop],
            whole_rows=self.whole_rows,
            sources=None if self.sources is None else self.sources[start:stop],
            source_names=self.source_names,
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})
