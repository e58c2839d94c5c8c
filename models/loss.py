"""The loss of training, held-out evaluation and studies.

`language_model_loss` and `squared_log_partition` take logits; `projected_loss` takes the head's inputs and weight instead,
for batches whose logits do not fit into memory.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .norm import at_least_fp32

# Logits that exist at once in `projected_loss`: 4,096 tokens of a vocabulary of 32,768, 256 MiB in bf16.
LOGITS_AT_ONCE = 2**27


def language_model_loss(logits: Tensor, labels: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the labels with non-zero weight.

    The mean is taken by the caller, who knows the count over all ranks: sums add, means do not.

    Args:
        logits: `[..., V]`; labels: int64 `[...]`, already shifted; loss_mask: `[...]`, the weight of each label, 0 where it
            does not count. Shapes before V are `[B, T]`, or `[n]` after `model(tokens, logits_to_keep=loss_mask.bool())`.

    Returns:
        The weighted sum in nats and the sum of the weights, fp32 scalars.
    """
    mask = loss_mask.flatten().float()
    nats = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="none")
    return (nats * mask).sum(), mask.sum()


def squared_log_partition(logits: Tensor, loss_mask: Tensor) -> Tensor:
    """The z-loss before its factor (arXiv 2204.02311 §5): the weighted sum of log(Z)^2, Z the softmax's denominator.

    Args:
        logits: `[n, V]`; loss_mask: `[n]`, the weight of each.

    Returns:
        an fp32 scalar.
    """
    return (torch.logsumexp(logits.float(), -1).square() * loss_mask.float()).sum()


def projected_loss(
    x: Tensor, weight: Tensor, labels: Tensor, loss_mask: Tensor, *, z_loss: float = 0.0, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of the logits `x weight^T`, computed piece by piece, so that the logits never exist as a whole, forward or
    backward.

    The gradient is taken in the forward pass, where the logits are: nothing is computed twice.

    Args:
        x: `[n, d]`, what the head reads: `model(..., head_fn=...)` hands it over with the weight.
        weight: `[V, d]`.
        labels: int64 `[n]`; loss_mask: `[n]`, the weight of each label.
        z_loss: the factor of `squared_log_partition`.
        rows: how many rows of logits exist at once; default by `LOGITS_AT_ONCE`.

    Returns:
        The objective, `language_model_loss` + z_loss * `squared_log_partition`, fp32, through which gradients go to x
        and weight; and the nats of each label before its weight, fp32 `[n]`, which has none.
    """
    rows = rows or max(1, LOGITS_AT_ONCE // len(weight))
    return _ProjectedLoss.apply(x, weight, labels, loss_mask, z_loss, rows, torch.is_grad_enabled())


class _ProjectedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, z_loss: float, rows: int, gradients: bool
    ) -> tuple[Tensor, Tensor]:
        of_logits = _compiled_loss() if x.is_cuda else _loss_of_logits
        mask = at_least_fp32(mask)
        wide = at_least_fp32(x[:0]).dtype
        nats = x.new_empty(len(x), dtype=wide)
        objective = x.new_zeros((), dtype=wide)
        dx = torch.empty_like(x) if gradients else None
        dweight = torch.zeros_like(weight, dtype=wide) if gradients else None
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            logits = F.linear(x[part], weight)
            nats[part], part_objective, dlogits = of_logits(logits, labels[part], mask[part], z_loss)
            objective += part_objective
            if dx is not None and dweight is not None:
                torch.mm(dlogits, weight, out=dx[part])
                dweight += dlogits.T @ x[part]
        if dweight is not None:
            ctx.save_for_backward(dx, dweight.to(weight.dtype))
        ctx.mark_non_differentiable(nats)
        return objective, nats

    @staticmethod
    def backward(ctx: Any, dobjective: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = ctx.saved_tensors
        # fp32 factors: a bf16 one would bend every gradient of the step by up to 2^-9.
        return (dx * dobjective).to(dx.dtype), (dweight * dobjective).to(dweight.dtype), None, None, None, None, None


def _loss_of_logits(logits: Tensor, labels: Tensor, mask: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each label in nats `[n]`, the objective, and the gradient of the objective `[n, V]` in the dtype of the
    logits."""
    wide = at_least_fp32(logits)
    log_z = wide.logsumexp(-1)
    nats = log_z - wide.gather(1, labels[:, None])[:, 0]
    share = (wide - log_z[:, None]).exp() * (1 + 2 * z_loss * log_z)[:, None]
    is_label = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
    gradient = torch.where(is_label, share - 1, share) * mask[:, None]
    return nats, (mask * (nats + z_loss * log_z.square())).sum(), gradient.to(logits.dtype)


@cache
def _compiled_loss() -> Any:
    """`_loss_of_logits` compiled, for GPUs: its many passes over the logits take most of the time and become three."""
    return torch.compile(_loss_of_logits, dynamic=True)
