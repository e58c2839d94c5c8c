"""One optimizer update on a whole batch: what a rank computes of it, and what all ranks learn together."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..data_prep.batch import Batch
from ..models import language_model_loss, squared_log_partition
from .config import RunConfig
from .mesh import Mesh

COMPONENTS = ("text", "recall")  # of a batch; their losses are reported apart


class Update(NamedTuple):
    """The same on every rank.

    Attributes:
        metrics: `loss`, `loss_text`, `loss_recall`, `grad_norm`, `learning_rate`.
        applied: False if a gradient was not finite: then no weight and no moment changed.
        flags: how many ranks raised each flag.
    """

    metrics: dict[str, float | None]
    applied: bool
    flags: list[int]


def update(
    engine: Any, batch: Batch, learning_rate: float, config: RunConfig, mesh: Mesh, *, flags: list[bool]
) -> Update:
    """Forward, backward and step on this rank's part of the whole batch; flags travel with the losses."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    accumulation = engine.gradient_accumulation_steps()
    # The engine averages over all ranks and micro-batches: undo both, divide by the whole batch's labels. The ranks of a
    # sequence group hold parts of one sum over its tokens, so the mean over the world is the true gradient for them too.
    scale = mesh.world * accumulation / batch.loss_mask.sum().item()
    rows = mesh.rows(batch)
    sums = torch.zeros(len(COMPONENTS), 2, dtype=torch.float64, device=engine.device)  # nats and labels of each
    for index in range(accumulation):
        nats, objective = _losses(engine, rows.rows(index, accumulation), config.train.z_loss, mesh)
        sums += nats
        engine.backward(objective * scale)
        finite = _replicated_gradients_are_finite(engine)
        engine.step()
    shared = torch.cat([sums.flatten(), torch.tensor(flags, dtype=torch.float64, device=engine.device)])
    dist.all_reduce(shared)
    totals = shared.tolist()
    metrics: dict[str, float | None] = {"loss": sum(totals[:4:2]) / sum(totals[1:4:2])}
    for number, name in enumerate(COMPONENTS):
        if totals[2 * number + 1]:
            metrics[f"loss_{name}"] = totals[2 * number] / totals[2 * number + 1]
    norm = engine.get_global_grad_norm()
    applied = finite and engine.was_step_applied()
    metrics |= {"grad_norm": float(norm) if applied and norm is not None else None, "learning_rate": learning_rate}
    return Update(metrics, applied, [int(count) for count in totals[4:]])


def _losses(engine: Any, micro: Batch, z_loss: float, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Of one micro-batch: nats and labels by component, `[2, 2]`, and the sum to descend on."""
    whole, micro = micro, micro.segment(mesh.segment, mesh.sequence_parallel).to(engine.device)
    counts = micro.loss_mask > 0  # logits are made only where a label counts: recall rows have few
    if mesh.group is None:
        logits = engine(micro.tokens, cu_seqlens=micro.cu_seqlens, at=counts)
    else:
        from ..kernels.sequence import SequenceContext

        borders = whole.cu_seqlens.to(engine.device)
        context = SequenceContext(
            group=mesh.group, rank=mesh.segment, world=mesh.sequence_parallel, cu_seqlens=borders
        )
        logits = engine(micro.tokens, context=context, at=counts)
    is_recall = micro.is_recall[:, None].expand_as(counts)[counts]
    labels, weights = micro.labels[counts], micro.loss_mask[counts]
    found = torch.zeros(len(COMPONENTS), 2, dtype=torch.float64, device=engine.device)
    objective = torch.zeros((), device=engine.device)
    for number, chosen in enumerate((~is_recall, is_recall)):
        nats, weight = language_model_loss(logits[chosen], labels[chosen], weights[chosen])
        objective = objective + nats
        found[number] += torch.stack([nats.detach(), weight])
    if z_loss:
        objective = objective + z_loss * squared_log_partition(logits, weights)
    return found, objective


def _replicated_gradients_are_finite(engine: Any) -> bool:
    """ZeRO 1 to 3 skip a step whose gradient is not finite; without ZeRO this does, before the step is made."""
    if engine.zero_optimization_stage() or not engine.is_gradient_accumulation_boundary():
        return True
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    finite = bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))  # the same on every rank: reduced already
    if not finite:
        for parameter in engine.module.parameters():
            parameter.grad = None
    return finite
