"""One optimizer update: forward and backward on this rank's part of the batch, losses summed over all ranks."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..data_prep.loading.batch import Batch
from ..kernels.sequence import SequenceContext
from ..models import projected_loss
from .config import RunConfig, TrainSection
from .mesh import Mesh
from .monitoring.straggler import Stopwatch

COMPONENTS = ("text", "recall")  # of a batch, whose losses are reported separately


class Update(NamedTuple):
    """The outcome of an update, the same on every rank.

    Attributes:
        metrics: `loss`, `loss_text`, `loss_recall`, `grad_norm`, `learning_rate`; with a gate penalty `gate_mean`.
        loss_by_source: of the text sources that the batch has rows of, where the run has several.
        applied: False if a gradient was not finite: then no weight and no moment changed.
        flags: how many ranks raised each flag.
        compute_seconds: each rank's compute seconds in the previous step, by rank.
    """

    metrics: dict[str, float | None]
    applied: bool
    flags: list[int]
    compute_seconds: list[float]
    loss_by_source: Mapping[str, float] = MappingProxyType({})


def update(
    engine: Any,
    batch: Batch,
    learning_rate: float,
    config: RunConfig,
    mesh: Mesh,
    *,
    flags: list[bool],
    gate_penalty: float,
    compute_seconds: float = 0.0,
    compute_timer: Stopwatch | None = None,
) -> Update:
    """Forward, backward and step on this rank's part of the batch; `flags` and `compute_seconds` are reduced with the losses.

    Args:
        compute_seconds: this rank's compute seconds in the previous step.
        gate_penalty: weight of the gate mean in the objective, in nats (`gate_penalty_at`).
        compute_timer: stopped after the forward pass of the first micro-batch, before any rank waits for another.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    accumulation = engine.gradient_accumulation_steps()
    # The engine averages over all ranks and micro-batches: undo both, divide by the whole batch's labels. The ranks of a
    # sequence group hold parts of one sum over its tokens, so the mean over the world is the true gradient for them too.
    scale = mesh.world * accumulation / batch.loss_mask.sum().item()
    rows = mesh.rows(batch)
    sources = _separate_sources(batch)
    count = len(COMPONENTS) + len(sources)
    sums = torch.zeros(count, 2, dtype=torch.float64, device=engine.device)  # nats and labels of each
    gate_mean_sum = torch.zeros(1, dtype=torch.float64, device=engine.device)
    for index in range(accumulation):
        nats, objective, gate_mean = _losses(engine, rows.rows(index, accumulation), config.train, mesh)
        sums += nats
        if compute_timer and index == 0:
            compute_timer.stop()
        objective = objective * scale
        if gate_mean is not None:
            gate_mean_sum += gate_mean.detach()
            # All micro-batches have as many positions, so the engine's mean is the batch's.
            objective = objective + gate_penalty * gate_mean
        engine.backward(objective)
        norm = _replicated_gradient_norm(engine)
        if norm is None or math.isfinite(norm):
            engine.step()
        else:
            _drop_step(engine)
    seconds_by_rank = [0.0] * mesh.world
    seconds_by_rank[mesh.rank] = compute_seconds
    payload = torch.tensor([*flags, *seconds_by_rank], dtype=torch.float64, device=engine.device)
    shared = torch.cat([sums.flatten(), payload, gate_mean_sum])
    dist.all_reduce(shared)
    *totals, total_gate_mean = shared.tolist()
    metrics: dict[str, float | None] = {"loss": sum(totals[:4:2]) / sum(totals[1:4:2])}
    means = [
        nats / labels if labels else None
        for nats, labels in zip(totals[: 2 * count : 2], totals[1 : 2 * count : 2], strict=True)
    ]
    metrics |= {f"loss_{name}": mean for name, mean in zip(COMPONENTS, means, strict=False) if mean is not None}
    by_source = zip(sources, means[len(COMPONENTS) :], strict=True)
    totals = totals[2 * count :]
    if config.train.gate_penalty:
        metrics["gate_mean"] = total_gate_mean / (mesh.world * accumulation)
    if norm is None:
        norm = float(engine.get_global_grad_norm())
    applied = math.isfinite(norm) and engine.was_step_applied()
    metrics |= {"grad_norm": norm if applied else None, "learning_rate": learning_rate}
    raised, by_rank = totals[: len(flags)], totals[len(flags) :]
    loss_by_source = {name: mean for name, mean in by_source if mean is not None}
    return Update(metrics, applied, [int(ranks) for ranks in raised], by_rank, loss_by_source)


def _separate_sources(batch: Batch) -> tuple[str, ...]:
    """The text sources whose losses are summed separately; empty if there is only one source."""
    return batch.source_names if len(batch.source_names) > 1 else ()


def _losses(engine: Any, micro: Batch, train: TrainSection, mesh: Mesh) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses of one micro-batch: nats and labels by component and source `[2 + sources, 2]`, the objective (a sum over labels), and
    the gate mean, or None without a gate penalty."""
    device = engine.device
    document_borders = None if micro.whole_rows else micro.cu_seqlens
    document_borders = None if document_borders is None else document_borders.to(device)
    context = None
    if mesh.group is not None:
        context = SequenceContext(
            mesh.group, mesh.segment, mesh.sequence_parallel, document_borders, mesh.predicted_sizes
        )
    options = {"cu_seqlens": document_borders} if context is None else {"context": context}

    def segment_of(tensor: Tensor) -> Tensor:
        return tensor if context is None else context.segment(tensor)

    # Logits are computed only where a label counts: recall rows have few. Positions are selected on the CPU, which needs no
    # synchronization with a GPU, and by NumPy, since torch's threads take milliseconds to start.
    mask = segment_of(micro.loss_mask)
    label_positions = torch.from_numpy(np.flatnonzero(mask.numpy())).to(device, non_blocking=True)
    tokens, labels, weights, rows = (
        tensor.to(device, non_blocking=True)
        for tensor in (segment_of(micro.tokens), segment_of(micro.labels), mask, micro.is_recall)
    )
    labels, weights = labels.flatten()[label_positions], weights.flatten()[label_positions]
    loss = partial(projected_loss, labels=labels, loss_mask=weights, z_loss=train.z_loss)
    heads = {"logits_to_keep": label_positions, "head_fn": loss, "return_gate_mean": train.gate_penalty > 0}
    result = engine(tokens, **heads, **options)
    if context is not None and not _predicted_sizes_hold(mesh, device):
        result = engine(tokens, **heads, context=replace(context, predicted_sizes=None))
    (objective, nats), gate_mean = result if train.gate_penalty else (result, None)
    nats_and_labels = torch.stack([nats * weights, weights]).double()
    row = label_positions // mask.shape[1]
    recall_sums = (nats_and_labels * rows[row]).sum(1)
    sums = torch.stack([nats_and_labels.sum(1) - recall_sums, recall_sums])
    if names := _separate_sources(micro):
        assert micro.sources is not None
        sources = micro.sources.to(device, non_blocking=True)[row]
        is_source = sources[:, None] == torch.arange(len(names), device=device)  # [labels, sources]
        sums = torch.cat([sums, (nats_and_labels @ is_source.double()).T])
    return sums, objective, gate_mean


def _predicted_sizes_hold(mesh: Mesh, device: torch.device) -> bool:
    """Whether the predicted sizes were right on every rank; otherwise all ranks repeat the forward pass, as ZeRO 3 requires."""
    if not mesh.predicted_sizes.pending:
        return True
    wrong = torch.tensor(float(not mesh.predicted_sizes.verify()), device=device)
    dist.all_reduce(wrong)
    return wrong.item() == 0


def _replicated_gradient_norm(engine: Any) -> float | None:
    """The gradient norm before clipping, after the last micro-batch without ZeRO, when every rank holds whole gradients.

    ZeRO 1 to 3 measure it themselves, and skip a step whose gradient is not finite.
    """
    if engine.zero_optimization_stage() or not engine.is_gradient_accumulation_boundary():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()  # the same on every rank: reduced already


def _drop_step(engine: Any) -> None:
    """Discard the gradients without a step, as ZeRO 1 to 3 do; the engine still has to count the micro-batch."""
    for parameter in engine.module.parameters():
        parameter.grad = None
    engine.micro_steps += 1
