"""The DeepSpeed engine of a run, and the process group under it."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..models import build_model, parameter_groups
from ..models.errors import UserError
from .config import RunConfig
from .quiet_deepspeed import deepspeed


def choose_device(config: RunConfig) -> torch.device:
    """The device of this rank.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    wanted = config.run.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        if not torch.cuda.is_available():
            raise UserError("run.device=cuda, but no CUDA device is visible here: use run.device=cpu or auto")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def join_process_group(device: torch.device) -> None:
    """Join the gang named by RANK, WORLD_SIZE and MASTER_*; a launcher (Ray Train) may have done it already."""
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, alone)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        alone = os.environ["WORLD_SIZE"] == "1"
        store = dist.HashStore() if alone else None
        dist.init_process_group(
            backend,
            store=store,
            rank=int(os.environ["RANK"]) if alone else -1,
            world_size=1 if alone else -1,
            timeout=timedelta(minutes=10),
        )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def build_engine(config: RunConfig, vocab_size: int, device: torch.device) -> Any:
    """Model, AdamW and ZeRO engine of this rank.

    The engine averages gradients over all ranks: the loop scales its local loss so that this mean is the gradient of
    the whole batch's loss.
    """
    model = build_model(config.model.resolve(vocab_size), seed=config.seed).to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.train.weight_decay),
        lr=config.train.learning_rate,
        betas=config.train.betas,
        eps=1e-8,
        foreach=True,
    )
    per_rank = config.train.batch_sequences // dist.get_world_size()
    microbatch = config.run.microbatch_sequences or per_rank
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": microbatch,
            "gradient_accumulation_steps": per_rank // microbatch,
            "gradient_clipping": config.train.gradient_clipping,
            "zero_optimization": {"stage": config.run.zero_stage},
            "bf16": {"enabled": config.train.precision == "bf16"},
            "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True,
        },
    )
    return engine
