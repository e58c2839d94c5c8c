"""Decisions that all ranks take together."""

import torch
import torch.distributed as dist

from ..models.common.errors import UserError


def raise_together(error: Exception | None, device: torch.device) -> None:
    """Raise on every rank if any rank brings an error, so that none is left waiting for the others.

    Raises:
        UserError: the message of the first rank that brought one.
    """
    failed = torch.tensor(float(error is not None), device=device)
    dist.all_reduce(failed)
    if failed.item():
        messages: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, None if error is None else str(error))
        raise UserError(next(message for message in messages if message is not None)) from error
