"""Collective decisions: an error on any rank is raised on all."""

import torch
import torch.distributed as dist

from ..models.common.errors import UserError


def raise_together(error: Exception | None, device: torch.device) -> None:
    """Raise on every rank if any rank has an error, so that no rank waits for the others forever.

    Raises:
        UserError: with the message of the lowest rank that has an error.
    """
    failed = torch.tensor(float(error is not None), device=device)
    dist.all_reduce(failed)
    if failed.item():
        messages: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, None if error is None else str(error))
        raise UserError(next(message for message in messages if message is not None)) from error
