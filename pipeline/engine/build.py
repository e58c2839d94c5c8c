"""The DeepSpeed engine of a run, and the process group under it."""

import os
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from ...kernels.sequence import kept_messages
from ...models import EchoLM, build_model, parameter_groups
from ...models.common.errors import UserError
from ...models.model import Block
from ..config import RunConfig
from ..mesh import Mesh
from .cuda_graphs import GraphedBlocks, why_not
from .quiet_deepspeed import deepspeed, use_cpu


def choose_device(config: RunConfig) -> torch.device:
    """The device of this rank.

    Raises:
        UserError: `run.device=cuda` without a CUDA device.
    """
    device_type = config.run.device
    if device_type == "auto":
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    if device_type == "cuda":
        if not torch.cuda.is_available():
            raise UserError("run.device=cuda, but no CUDA device is visible here: use run.device=cpu or auto")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    use_cpu()
    return torch.device("cpu")


def join_process_group(device: torch.device) -> None:
    """Join the worker group named by RANK, WORLD_SIZE and MASTER_*; a launcher (Ray Train) may have done it already."""
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, default)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        single_process = os.environ["WORLD_SIZE"] == "1"
        store = dist.HashStore() if single_process else None  # pyright: ignore[reportPrivateImportUsage]  # documented
        dist.init_process_group(
            backend,
            store=store,
            rank=int(os.environ["RANK"]) if single_process else -1,
            world_size=1 if single_process else -1,
            timeout=timedelta(minutes=10),
        )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def build_engine(config: RunConfig, vocab_size: int, device: torch.device, mesh: Mesh) -> Any:
    """Model, AdamW and ZeRO engine of this rank.

    The engine averages gradients over all ranks, those that share a sequence too: the loop scales its local loss so that
    this mean is the gradient of the whole batch's loss.
    """
    run, train = config.run, config.train
    model = build_model(config.model.resolve(vocab_size), seed=config.seed, device=device)
    if run.zero_stage == 3:
        _register_external_weights(model)
    for block in model.blocks:
        if run.compile:
            block.forward = torch.compile(block.forward)
        # Outermost: a checkpointed region inside a compiled one could cause graph breaks.
        if run.activation_checkpointing:
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, context_fn=kept_messages
            )
    on_gpu = device.type == "cuda" and not run.offload_optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(model, train.weight_decay),
        lr=train.learning_rate,
        betas=train.betas,
        eps=1e-8,
        **({"fused": True} if on_gpu else {"foreach": True}),
    )
    rows = train.batch_sequences // mesh.replicas
    microbatch = run.microbatch_sequences or rows
    zero: dict[str, Any] = {"stage": run.zero_stage}
    if run.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": microbatch,
            "gradient_accumulation_steps": rows // microbatch,
            "gradient_clipping": train.gradient_clipping,
            "zero_optimization": zero,
            "bf16": {"enabled": train.precision == "bf16"},
            "steps_per_print": 10**9,
            "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice per micro-batch
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's own AdamW, so that the update does not depend on where its state lies
        },
    )
    if run.zero_stage in (1, 2) and not run.offload_optimizer:
        # A norm that is not finite skips the step already; checking each gradient before that takes thousands of launches.
        zero_optimizer: Any = engine.optimizer
        zero_optimizer.check_overflow = lambda partition_gradients=True: None
    if why_not(config, device) is None:
        GraphedBlocks(model)
    return engine


def _register_external_weights(model: EchoLM) -> None:
    """Register with ZeRO-3 the weights that are read outside their own module's `forward`.

    ZeRO-3 gathers a module's weights around its `forward`. A block gathers all of its weights at once, since some (the
    convolution's, a Koopman readout's) are read by the module around them; the stack itself reads the matrix of the logits.
    """
    deepspeed.utils.set_z3_leaf_modules(model, [Block])
    head = model.embedding if model.head is None else model.head
    deepspeed.zero.register_external_parameter(model, head.weight)
