"""The training loop of one rank. Everything it needs lies in the run folder; everything it learns is written there."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..data_prep.dataset import Dataset
from ..data_prep.loader import Batch, BatchLoader
from ..models import language_model_loss
from ..models.errors import UserError
from ..models.files import write_json
from .checkpoint import check_checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from .config import RunConfig
from .engine import build_engine, choose_device, join_process_group
from .events import EventLog
from .run_folder import RunFolder
from .schedule import learning_rate_at

COMPONENTS = ("text", "recall")  # of a batch; their losses are reported apart


def train(run_path: Path | str) -> None:
    """Train the run in `run_path` from its last complete checkpoint to its end, as the rank that the environment names.

    Raises:
        UserError: also recorded in the run's `error.json`, since this may be a process of a gang.
    """
    run = RunFolder(run_path)
    try:
        _train(run, run.load_config())
    except UserError as error:
        write_json(run.error_file, {"message": str(error)})
        raise


def make_loader(dataset: Dataset, config: RunConfig) -> BatchLoader:
    """The batch order of a run: a pure function of its configuration and data."""
    return BatchLoader(
        dataset,
        config.mixture,
        sequence_length=config.train.sequence_length,
        batch_sequences=config.train.batch_sequences,
        seed=config.seed,
    )


def _train(run: RunFolder, config: RunConfig) -> None:
    torch.set_num_threads(config.run.threads)
    device = choose_device(config)
    join_process_group(device)
    dataset = Dataset.open(run.data_folder())
    loader = make_loader(dataset, config)
    engine = build_engine(config, dataset.tokenizer().get_vocab_size(), device)

    step, tokens = 0, 0
    checkpoint = latest_checkpoint(run)
    if checkpoint is not None:
        check_checkpoint(checkpoint, config)
        step, tokens = load_checkpoint(engine, checkpoint)
    log = EventLog(run.events_file) if dist.get_rank() == 0 else None
    if log:
        log.write(
            "start", step=step, tokens=tokens, pid=os.getpid(), world_size=dist.get_world_size(), device=str(device)
        )

    last = min(config.train.steps, config.run.stop_step or config.train.steps)
    for batch, stall in _prefetched(loader, step, last):
        started = time.perf_counter()
        metrics = _update(engine, batch, learning_rate_at(step, config.train), device)
        step, tokens = step + 1, tokens + config.train.batch_tokens
        seconds = time.perf_counter() - started + stall
        if log:
            rate = config.train.batch_tokens / seconds
            log.write("step", step=step, tokens=tokens, tokens_per_second=rate, data_stall_seconds=stall, **metrics)
        if not torch.isfinite(torch.tensor(metrics["loss"])):
            raise UserError(
                f"the loss of {run.path} is not finite at step {step}: lower train.learning_rate and start again "
                "under another name"
            )
        if step % config.run.checkpoint_every == 0 or step == last:
            started = time.perf_counter()
            path = save_checkpoint(engine, run, config, step, tokens)
            if log:
                log.write("checkpoint", step=step, path=path.name, seconds=time.perf_counter() - started)
    if log and step == config.train.steps:
        log.write("finish", step=step, tokens=tokens)
        write_json(run.finished_file, {"step": step, "tokens": tokens})
    dist.barrier()  # a rank that leaves early can abort the others' exit
    engine.destroy()
    dist.destroy_process_group()


def _prefetched(loader: BatchLoader, first: int, last: int) -> Iterator[tuple[Batch, float]]:
    """Batches of steps `first` to `last - 1`, the next one made while this one trains; with the seconds waited for it."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
        upcoming = pool.submit(loader.batch, first) if first < last else None
        for step in range(first, last):
            started = time.perf_counter()
            batch = upcoming.result()
            stall = time.perf_counter() - started
            upcoming = pool.submit(loader.batch, step + 1) if step + 1 < last else None
            yield batch, stall


def _update(engine: Any, batch: Batch, learning_rate: float, device: torch.device) -> dict[str, float | None]:
    """One optimizer update on the whole batch; this rank computes its rows. Returns the metrics of the whole batch."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    world, accumulation = dist.get_world_size(), engine.gradient_accumulation_steps()
    count = batch.loss_mask.sum().item()
    rows = batch.rows(dist.get_rank(), world)
    sums = torch.zeros(len(COMPONENTS), 2, dtype=torch.float64)  # nats and labels of each
    for index in range(accumulation):
        micro = rows.rows(index, accumulation).to(device)
        counts = micro.loss_mask > 0  # logits are made only where a label counts: recall rows have few
        logits = engine(micro.tokens, cu_seqlens=micro.cu_seqlens, at=counts)
        is_recall = micro.is_recall[:, None].expand_as(counts)[counts]
        labels, weights = micro.labels[counts], micro.loss_mask[counts]
        total = torch.zeros((), device=device)
        for number, chosen in enumerate((~is_recall, is_recall)):
            nats, weight = language_model_loss(logits[chosen], labels[chosen], weights[chosen])
            total = total + nats
            sums[number] += torch.stack([nats.detach(), weight]).double().cpu()
        # The engine averages over ranks and micro-batches: undo both, divide by the whole batch's labels.
        engine.backward(total * (world * accumulation / count))
        engine.step()
    sums = sums.to(device)
    dist.all_reduce(sums)
    metrics = {"loss": (sums[:, 0].sum() / sums[:, 1].sum()).item(), "learning_rate": learning_rate}
    norm = engine.get_global_grad_norm()
    metrics["grad_norm"] = None if norm is None else float(norm)
    for name, (nats, labels) in zip(COMPONENTS, sums.tolist(), strict=True):
        if labels:
            metrics[f"loss_{name}"] = nats / labels
    return metrics
