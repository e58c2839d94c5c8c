"""The one loss: training, held-out evaluation and studies all call it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def language_model_loss(logits: Tensor, labels: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the labels that count.

    The mean is taken by the caller, who knows the count over all ranks: sums add, means do not.

    Args:
        logits: `[..., V]`; labels: int64 `[...]`, already shifted; loss_mask: `[...]`, the weight of each label, 0 where it
            does not count. Shapes before V are `[B, T]`, or `[n]` after `model(tokens, at=loss_mask.bool())`.

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
